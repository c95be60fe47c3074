"""Measures Lorry's engine beside plain vLLM and PEFT, all sides in one run: `python -m bench`."""
