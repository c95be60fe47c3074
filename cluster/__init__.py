"""Several servers as one: which replica answers a call. Stands on top of `server`."""
