"""Adapters: judged, stored and published as immutable versions that names resolve to.

    names       the grammar of references            checkpoint/  judges an adapter folder
    sources     where adapters come from             store/       immutable files by digest
    publish     judges and stores a new version      catalog/     names, versions, aliases, events
    watch       publishes from a watched folder      cli/         `lorry adapters ...`
    upkeep      verifies and cleans the store        client       a running server's catalog
    errors      everything that can go wrong, as a tree

The server and the training code build on it. It imports no torch, vLLM or FastAPI.
"""
