"""What an adapter is, which exist, and which immutable version a name means.

Knows nothing of torch, of vLLM or of HTTP; the server and the training code stand on it.
"""
