"""Marked adapters: each answers with its own marker."""
