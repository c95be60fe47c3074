"""What can go wrong with adapters, as one tree. Knows nothing of HTTP or of exit codes.

AdapterError
├── BadName              a name or alias that cannot be given to an adapter
├── BadReference         a text that is not NAME[@VERSION|@ALIAS|@sha256:PREFIX]
├── AdapterNotFound      a well-formed reference that means nothing here
├── AliasNotFound        an adapter without an alias of that name
├── AmbiguousDigest      a digest prefix that means more than one version
├── AliasIsSplit         an alias of several versions, where one version must be meant
├── SplitInvalid         weights that requests cannot be shared by
├── NothingToRollBack    an alias that pointed at nothing else before
├── VersionInUse         a version that is pinned or that an alias points at
├── OtherBase            bytes that a name has already, for another base
├── RemovedBefore        bytes found again that somebody removed
├── CheckpointInvalid    an adapter that must not be served; carries every Problem found
├── BaseUnreadable       a base model folder whose linear layers cannot be told
├── SourceError          where an adapter should come from; what is said names no secret
│   ├── SourceUnsupported  an address that is not, or may not be, read
│   ├── SourceNotFound     an address that holds no adapter
│   └── SourceUnreachable  an address that did not answer, or not in full
├── StoreError
│   ├── StoreUnreadable  the store's folder is missing or closed to us
│   ├── StoreUnwritable  writing an object failed; nothing was published
│   ├── StoreBusy        somebody is at work in the store for too long
│   ├── ObjectMissing    a digest without an object
│   └── ObjectDamaged    an object whose bytes are no longer those of its digest
├── CatalogError
│   ├── CatalogUnreadable  the database cannot be opened, read or written
│   └── SchemaMismatch     the database was written by another version of the catalog
└── ServerError          a running server, asked over its admin API
    ├── BadServerAddress   a text that is no server's address
    ├── TokenMissing       no admin token, or none that can be sent
    ├── ServerUnreachable  it did not answer, or not in full
    ├── AnswerUnclear      what answered does not answer as a server of ours
    └── ServerRefused      it said no; carries its code and status
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_PROBLEMS = 10
# A config of nothing but bad keys has a hundred thousand problems; nobody reads beyond some.
MAX_PROBLEMS = 1_000
SHOWN_TEXT = 80


def quote(text: str) -> str:
    """Foreign text made safe for one line of a terminal or a log: escaped and cut."""
    shown = text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 3]}..."
    return repr(shown)


class AdapterError(Exception):
    """Root of the tree: what happened (message) and what to do next (hint)."""

    code: str = "adapter_error"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class BadName(AdapterError):
    code = "bad_name"


class BadReference(AdapterError):
    code = "bad_reference"


class AdapterNotFound(AdapterError):
    code = "adapter_not_found"


def no_such_adapter(name: str) -> AdapterNotFound:
    return AdapterNotFound(
        f"there is no adapter {quote(name)}", "list the adapters to see those there are"
    )


class AliasNotFound(AdapterError):
    code = "alias_not_found"


class AmbiguousDigest(AdapterError):
    code = "ambiguous_digest"


class AliasIsSplit(AdapterError):
    code = "alias_is_split"


class SplitInvalid(AdapterError):
    code = "split_invalid"


class NothingToRollBack(AdapterError):
    code = "nothing_to_roll_back"


class VersionInUse(AdapterError):
    code = "version_in_use"


class OtherBase(AdapterError):
    code = "other_base"


class RemovedBefore(AdapterError):
    """Only for who publishes what he finds, not what he was told to."""

    code = "removed_before"


class BaseUnreadable(AdapterError):
    code = "base_unreadable"


class SourceError(AdapterError):
    code = "source_error"


class SourceUnsupported(SourceError):
    code = "source_unsupported"


class SourceNotFound(SourceError):
    code = "source_not_found"


class SourceUnreachable(SourceError):
    code = "source_unreachable"


class StoreError(AdapterError):
    code = "store_error"


class StoreUnreadable(StoreError):
    code = "store_unreadable"


class StoreUnwritable(StoreError):
    code = "store_unwritable"


class StoreBusy(StoreError):
    code = "store_busy"


class ObjectMissing(StoreError):
    code = "object_missing"


class ObjectDamaged(StoreError):
    code = "object_damaged"


class CatalogError(AdapterError):
    code = "catalog_error"


class CatalogUnreadable(CatalogError):
    code = "catalog_unreadable"


class SchemaMismatch(CatalogError):
    code = "schema_mismatch"


class ServerError(AdapterError):
    code = "server_error"


class BadServerAddress(ServerError):
    code = "bad_server_address"


class TokenMissing(ServerError):
    code = "admin_token_missing"


class ServerUnreachable(ServerError):
    code = "server_unreachable"


class AnswerUnclear(ServerError):
    code = "answer_unclear"


class ServerRefused(ServerError):
    """What the server said, which is also what to do next; the code is the server's own."""

    code = "server_refused"

    def __init__(self, message: str, hint: str = "", *, code: str = code, status: int = 0) -> None:
        super().__init__(message, hint)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why an adapter is refused. `where` is a file, a config key or a tensor."""

    code: str
    where: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}; {self.fix} ({self.code})"


class CheckpointInvalid(AdapterError):
    """Carries the problems of the adapter (up to MAX_PROBLEMS); its text shows the first few."""

    code = "checkpoint_invalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems[:MAX_PROBLEMS])
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        super().__init__(f"the adapter has {count} {noun}", "mend it and publish it again")

    def __str__(self) -> str:
        lines = [super().__str__(), *map(str, self.problems[:SHOWN_PROBLEMS])]
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"and {len(self.problems) - SHOWN_PROBLEMS} more")
        return "\n  ".join(lines)

    def __reduce__(self) -> tuple[type["CheckpointInvalid"], tuple[list[Problem]]]:
        return type(self), (self.problems,)
