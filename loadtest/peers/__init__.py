"""Peers that come without a server of their own: merged models, and PEFT."""
