"""Adapters: what one is, which exist, and which immutable version a name means.

    names       the grammar of references            checkpoint/  judges an adapter folder
    sources     where adapters come from             store/       immutable files by digest
    publish     judges and stores a new version      catalog/     names, versions, aliases, events
    watch       publishes what appears in a folder   cli/         `lorry adapters ...`
    upkeep      verifies and cleans the store        client       a running server's catalog
    errors      the tree of what can go wrong

The server and the training code build on it. It imports no torch, vLLM or FastAPI.
"""
