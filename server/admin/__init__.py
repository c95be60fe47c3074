"""The admin API: publish, point, split, roll back, pin, load and remove, over HTTP.

Off unless the server has an admin token. The adapters package does the work on catalog and store.
"""
