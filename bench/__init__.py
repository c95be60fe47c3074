"""Measures Lorry's engine beside plain vLLM in one run: `python -m bench`."""
