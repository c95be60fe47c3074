"""Which adapters the engine holds: leases, loads, evictions, and what the catalog asks to keep."""
