"""The only place, beside the kernels, that imports vLLM."""
