"""What is recorded of each call: response headers, metrics, span and log line, from one object."""
