"""The admin API: publish, point, split, roll back, pin, load and remove, over HTTP.

Shut unless the server has an admin token. What it does to the catalog and the store is theirs.
"""
