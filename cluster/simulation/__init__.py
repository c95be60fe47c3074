"""Compares ways to place calls on replicas, seeded: `python -m cluster.simulation`."""
