"""What came of a run: figures, truth, and whether client and server agree."""
