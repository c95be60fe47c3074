"""Scenarios, and the calls planned from them."""
