"""Reports: terminal tables, HTML pages with charts, JSON."""
