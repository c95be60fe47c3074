"""The form in which an adapter is asked: its own chat template, special tokens and end token."""
