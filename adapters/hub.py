"""Models on the Hugging Face hub, and in its cache on this machine, by huggingface_hub.

Its settings are the library's own: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE. A folder in the
cache is `models--ORG--NAME/snapshots/COMMIT`: its path says what it is. Knows nothing of what the
files hold.
"""

import errno
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from adapters.errors import (
    BaseForbidden,
    BaseNotCached,
    BaseNotFound,
    BaseUnreachable,
    CacheUnwritable,
    quote,
)

ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
CACHED = re.compile(r"models--([\w.-]+)", re.ASCII)
TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as the library reads its variables
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Neither subfolders, which hold the same model in other forms, nor Mistral's form beside the other.
IGNORED = ("*/*", "adapter_*", "consolidated*.safetensors")
REPORT_SECONDS = 5.0

Report = Callable[[str], None]


class HubModel(NamedTuple):
    """ORG/NAME on the hub, and a branch, tag or commit; None is the default branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


class Facts(NamedTuple):
    """A model's files on the hub, and the model that it was made from, as its card says."""

    files: list[str]
    made_from: str | None


def parse_id(text: str) -> HubModel | None:
    """ORG/NAME[@REVISION], with or without hf:// before it; None for another text."""
    found = ID.fullmatch(text.removeprefix("hf://"))
    return HubModel(found["repo"], found["revision"]) if found else None


def model_of(folder: Path) -> HubModel | None:
    """The model and the commit that a folder of the hub's cache holds; None for another folder."""
    parts = folder.resolve().parts
    found = CACHED.fullmatch(parts[-3]) if len(parts) > 2 and parts[-2] == "snapshots" else None
    return HubModel(repo_of(found), parts[-1]) if found else None


def repo_of(cached: re.Match[str]) -> str:
    """ORG/NAME of what CACHED matched."""
    return cached[1].replace("--", "/", 1)


def fetch(model: HubModel, patterns: Sequence[str], report: Report) -> Path:
    """The model's files of these patterns, in the hub's cache: fetched, or as they are there.

    Without a network the cache is enough if it has all of them. Raises BaseNotFound, BaseForbidden,
    BaseNotCached, BaseUnreachable or CacheUnwritable.
    """
    hub = _import_hub()
    # It warns where no file has one of the patterns, and of a cache that can't be written.
    logging.getLogger("huggingface_hub._snapshot_download").setLevel(logging.ERROR)
    progress = _Progress(model, report)
    with _explained(model):
        folder = hub.snapshot_download(
            model.repo,
            revision=model.revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(IGNORED),
            tqdm_class=progress.bar_class(),
        )
    progress.end()
    return Path(folder)


def describe(model: HubModel) -> Facts:
    """What the hub says of a model; raises as `fetch` does."""
    with _explained(model):
        found = _import_hub().HfApi().model_info(model.repo, revision=model.revision)
    named = getattr(found.card_data, "base_model", None)
    named = named[0] if isinstance(named, list) and named else named
    made_from = named if isinstance(named, str) and ID.fullmatch(named) else None
    return Facts([each.rfilename for each in found.siblings or ()], made_from)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set: then only the cache is read."""
    return bool(_import_hub().constants.HF_HUB_OFFLINE)


def find_cached(model: HubModel, name: str) -> Path | None:
    """A file of the model in the hub's cache, or None."""
    hub = _import_hub()
    found = hub.try_to_load_from_cache(model.repo, name, revision=model.revision)
    return Path(found) if isinstance(found, str) else None


def obey_environment() -> None:
    """Take HF_HUB_OFFLINE as it is now: the library reads it when it is imported."""
    if "huggingface_hub" in sys.modules:
        said = os.environ.get("HF_HUB_OFFLINE", "")
        _import_hub().constants.HF_HUB_OFFLINE = said.upper() in TRUE


def _import_hub() -> ModuleType:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    import huggingface_hub.constants  # no attribute of the package before

    return huggingface_hub


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """Raise one of our errors for any of the library's, whose texts are long and may hold URLs."""
    _import_hub()
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        # What was not found in the cache either, and the reason why the cache was asked.
        reason = error.__cause__
        if is_offline():
            raise _not_cached(model) from error
        if isinstance(reason, HfHubHTTPError):
            raise _refused(model, reason) from error
        raise _unreachable(model, reason or error) from error
    except HfHubHTTPError as error:
        raise _refused(model, error) from error
    except OSError as error:
        if error.errno in FULL or error.filename:
            raise _unwritable(error) from error
        raise _unreachable(model, error) from error
    except Exception as error:  # its HTTP libraries have trees of their own
        raise _unreachable(model, error) from error


def _refused(model: HubModel, error: Any) -> Exception:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return BaseNotFound(
            f"the model {quote(model.repo)} has no revision {quote(model.revision or 'main')}",
            "give a branch, a tag or a commit of it after the @",
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return BaseForbidden(
            f"the hub lets you read {quote(model.repo)} only with permission",
            "ask for it on the model's page, and set HF_TOKEN to a token of that account",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return BaseNotFound(
            f"there is no folder {quote(str(model))} here, and no model {quote(model.repo)} on the"
            " hub that you may read",
            "check the spelling; a private model needs HF_TOKEN",
        )
    if status == 401:
        return BaseForbidden(
            "the hub does not accept the token that it was given",
            "set HF_TOKEN to a valid one, or unset it and `hf auth logout`",
        )
    return _unreachable(model, error)


def _not_cached(model: HubModel) -> BaseNotCached:
    return BaseNotCached(
        f"there is no folder {quote(str(model))} here, the hub's cache {quote(_cache())} does not"
        f" hold all of the model {quote(str(model))}, and HF_HUB_OFFLINE forbids to fetch it",
        "unset HF_HUB_OFFLINE, or fetch it where there is a network and copy the cache (HF_HOME)",
    )


def _unreachable(model: HubModel, error: BaseException) -> BaseUnreachable:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = f"it answered {status}" if status else type(error).__name__
    return BaseUnreachable(
        f"there is no folder {quote(str(model))} here, and the hub could not give the model:"
        f" {said}",
        "check the network (a mirror is set by HF_ENDPOINT, a proxy by HTTPS_PROXY) and try again:"
        " what has been fetched is kept; or give the model's folder",
    )


def _unwritable(error: OSError) -> CacheUnwritable:
    return CacheUnwritable(
        f"the hub's cache {quote(_cache())} can't be written: {error.strerror or error}",
        "free space, or set HF_HOME to a folder on another disk; what has been fetched is kept",
    )


def _cache() -> str:
    return str(_import_hub().constants.HF_HUB_CACHE)


class _Progress:
    """Tells how much of a model has been fetched, in a line now and then, and the sum at the end.

    Says nothing of what is in the cache already.
    """

    def __init__(self, model: HubModel, report: Report) -> None:
        self._model, self._report = model, report
        self._told = 0.0
        self._began = time.monotonic()
        self._total = 0

    def bar_class(self) -> type:
        """A bar as the library wants one, which draws nothing."""
        from tqdm.std import tqdm

        tell = self._tell

        class Bar(tqdm):  # type: ignore[misc]
            monitor_interval = 0  # no thread

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options | {"file": io.StringIO(), "mininterval": 0.5})

            def display(self, msg: str | None = None, pos: int | None = None) -> None:
                if self.unit == "B" and self.total:
                    tell(int(self.n), int(self.total))

        return Bar

    def end(self) -> None:
        if self._told:
            took = time.monotonic() - self._began
            self._report(f"fetched {self._model}: {_size(self._total)} in {took:.0f} s")

    def _tell(self, done: int, total: int) -> None:
        # Several threads: one line too many does no harm.
        now, self._total = time.monotonic(), max(total, self._total)
        if not self._told:
            self._report(f"fetching {self._model} from the hub into {_cache()}")
        elif now - self._told > REPORT_SECONDS:
            self._report(f"fetched {_size(done)} of {_size(self._total)}")
        else:
            return
        self._told = now


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
