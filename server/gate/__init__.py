"""Fair admission: which call enters the engine next."""
