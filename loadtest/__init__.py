"""Load tests: they speak HTTP only and import none of the other packages."""
