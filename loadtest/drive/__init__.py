"""The load generator: makes the planned calls, and the actions beside them."""
