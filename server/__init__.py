"""One process: HTTP in front of one vLLM engine that holds a base and many adapters."""
