"""Records each call as response headers, metrics, span and log line, all from one `Call`."""
