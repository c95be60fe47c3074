"""Adapters whose every answer names them."""
