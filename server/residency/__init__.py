"""Which adapters the engine holds: leases, loads, evictions, pins and removals."""
