"""The load generator: makes the planned calls and performs the actions."""
