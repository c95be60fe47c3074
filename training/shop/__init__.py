"""The example domain: free-text shop orders and customer messages, and their answers.

Everything here is seeded and pure Python; it knows nothing about models, tokenizers or training.
"""
