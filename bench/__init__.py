"""Measures Lorry's engine beside plain vLLM, all sides in one run: `python -m bench`."""
