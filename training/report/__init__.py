"""The report of a run: its curves as a picture, and one page that opens offline."""
