"""The HTTP side: the application, its middleware, and one call's exchange with vLLM's app."""
