"""Judges a run: figures, correctness of answers, agreement of client and server, verdict."""
