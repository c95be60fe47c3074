"""The environment of the processes that the server starts: its own, without credentials.

The server itself needs them again and again, to connect to its catalog and to its store. An engine
runs weights and templates of whoever published them, and needs none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from multiprocessing import util
from typing import Any

# The catalog's own, and those of the drivers of databases (libpq) and buckets.
_CREDENTIALS = ("LORRY_ADMIN_TOKEN", "LORRY_CATALOG")
_DRIVERS = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_", "PG")

_spawn = util.spawnv_passfds


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a child gets."""
    withheld = _withheld(environ)
    return {name: value for name, value in environ.items() if name not in withheld}


def withhold() -> None:
    """Start multiprocessing's processes in such an environment too: it takes none for them.

    Its fork server, whose environment its children show, and vLLM's engine on a GPU are such.
    """
    util.spawnv_passfds = _spawn_without


def _spawn_without(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    # Not by changing the environment for a moment: other threads read it.
    env, names = shutil.which("env"), _withheld(os.environ)
    if env is None or not names:
        return _spawn(path, args, passfds)
    unset = [word for name in sorted(names) for word in ("-u", name)]
    return _spawn(os.fsencode(env), [env, *unset, path, *args[1:]], passfds)


def _withheld(environ: Mapping[str, str]) -> set[str]:
    return {name for name in environ if name in _CREDENTIALS or name.startswith(_DRIVERS)}
