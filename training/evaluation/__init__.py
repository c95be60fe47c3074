"""Judges adapters on held-out examples: answers, metrics, intervals, and the record of it all."""
