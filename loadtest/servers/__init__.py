"""Servers under test that the tool starts itself."""
