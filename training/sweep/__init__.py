"""A sweep: trains each combination of settings and compares them on the validation set."""
