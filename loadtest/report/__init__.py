"""A run for people and for programs: tables, charts, HTML and JSON."""
