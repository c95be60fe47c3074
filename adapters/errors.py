"""Everything that can go wrong with adapters, as one tree. Knows nothing of HTTP or exit codes.

AdapterError
├── BadName              a text that cannot name an adapter or an alias
├── BadReference         a text that is not NAME[@VERSION|@ALIAS|@sha256:PREFIX]
├── SumInvalid           a text that is no sum of adapters, or parts that can't be added
├── AdapterNotFound      a well-formed reference without a version
├── AliasNotFound        an adapter that has no such alias
├── AmbiguousDigest      a digest prefix that means more than one version
├── AliasIsSplit         an alias of several versions, where one version must be meant
├── SplitInvalid         weights that cannot split requests
├── WeightInvalid        a number that cannot be an adapter's weight
├── NothingToRollBack    an alias without an earlier target
├── EvaluationInvalid    figures that can't be of an evaluation
├── GateRefused          an alias's move to a version that is not shown to be better
├── VersionInUse         a version that is pinned or that an alias points at
├── OtherBase            bytes that the name already has for another base
├── KeyInvalid           what no API key can have or be
├── KeyNotFound          a name without a key
├── KeyExists            a name that a key has, or had, already
├── BadMoment            a text that is no point in time
├── BadField             what usage is not counted by
├── LimitNotFound        an adapter, or a key on it, that has no limits of its own
├── KeyIsRevoked         a change of a key that was revoked, which is for good
├── RemovedBefore        bytes in a watched folder whose version was removed
├── CheckpointInvalid    an adapter that must not be served; carries every Problem found
├── TemplateNotRun       a chat template whose process did not start or failed
├── BaseUnreadable       a folder from which no base model can be read
│   ├── BaseNotFound     neither a folder nor a model of the hub that one may read
│   ├── BaseForbidden    a model of the hub that needs a permission, or another token
│   ├── BaseNotCached    a model that is not here, while HF_HUB_OFFLINE forbids to fetch it
│   └── BaseUnsupported  weights of another form than safetensors: GGUF, pickles
├── BaseUnreachable      a model that the hub did not give in full
├── CacheUnwritable      the hub's cache is full, or can't be written
├── SourceError          an adapter's source; messages contain no secret
│   ├── SourceUnsupported  an address that cannot, or may not, be read
│   ├── SourceNotFound     an address that holds no adapter
│   └── SourceUnreachable  an address that did not answer in full
├── StoreError
│   ├── StoreUnreadable  the store's folder is missing or not readable
│   ├── StoreUnwritable  writing an object failed; nothing was published
│   │   ├── StoreReadOnly  the store, or its catalog, can't be written: a read-only mount, rights
│   │   └── StoreFull      no space, or no quota, is left
│   ├── StoreBusy        another process held the store's lock for too long
│   ├── ObjectMissing    a digest that has no object
│   └── ObjectDamaged    an object whose bytes do not match its digest
├── CatalogError
│   ├── CatalogUnreadable  the database cannot be opened, read or written
│   ├── CatalogReplaced    the database is another one than the one that was opened
│   └── SchemaMismatch     the database has the schema of another Lorry version
└── ServerError          a running server and its admin API
    ├── BadServerAddress   a text that is not the address of a server
    ├── TokenMissing       no admin token, or one that cannot be sent
    ├── ServerUnreachable  it did not answer in full
    ├── AnswerUnclear      the answer is not one of a Lorry server
    └── ServerRefused      it refused the request; carries its code and status
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_PROBLEMS = 10
# A config that consists of bad keys can have a hundred thousand problems.
MAX_PROBLEMS = 1_000
SHOWN_TEXT = 80


def quote(text: str) -> str:
    """Untrusted text for one line of a terminal or a log: escaped, and cut to SHOWN_TEXT."""
    shown = text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 3]}..."
    return repr(shown)


class AdapterError(Exception):
    """Root of the tree: what happened (`message`) and what to do about it (`hint`)."""

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


class SumInvalid(AdapterError):
    code = "sum_invalid"


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


class WeightInvalid(AdapterError):
    code = "weight_invalid"


class NothingToRollBack(AdapterError):
    code = "nothing_to_roll_back"


class EvaluationInvalid(AdapterError):
    code = "evaluation_invalid"


class GateRefused(AdapterError):
    code = "gate_refused"


class VersionInUse(AdapterError):
    code = "version_in_use"


class OtherBase(AdapterError):
    code = "other_base"


class KeyInvalid(AdapterError):
    code = "key_invalid"


class KeyNotFound(AdapterError):
    code = "key_not_found"


class KeyExists(AdapterError):
    code = "key_exists"


class BadMoment(AdapterError):
    code = "bad_moment"


class BadField(AdapterError):
    code = "bad_field"


class LimitNotFound(AdapterError):
    code = "limit_not_found"


class KeyIsRevoked(AdapterError):
    code = "key_revoked"


class RemovedBefore(AdapterError):
    """Raised by folder watching only; an explicit publish may bring the bytes back."""

    code = "removed_before"


class TemplateNotRun(AdapterError):
    code = "template_not_run"


class BaseUnreadable(AdapterError):
    code = "base_unreadable"


class BaseNotFound(BaseUnreadable):
    code = "base_not_found"


class BaseForbidden(BaseUnreadable):
    code = "base_forbidden"


class BaseNotCached(BaseUnreadable):
    code = "base_not_cached"


class BaseUnsupported(BaseUnreadable):
    code = "base_unsupported"


class BaseUnreachable(AdapterError):
    code = "base_unreachable"


class CacheUnwritable(AdapterError):
    code = "cache_unwritable"


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


class StoreReadOnly(StoreUnwritable):
    code = "store_read_only"


class StoreFull(StoreUnwritable):
    code = "store_full"


def unwritable(said: str, error: OSError, hint: str) -> StoreUnwritable:
    """The error for a failed write: StoreReadOnly or StoreFull where the system says so."""
    kind = StoreUnwritable
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        kind = StoreReadOnly
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        kind = StoreFull
    return kind(f"{said}: {error.strerror or error}", hint)


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


class CatalogReplaced(CatalogError):
    code = "catalog_replaced"


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
    """The server's own message and code; the message says what to do, so the hint may be empty."""

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
    """Carries up to MAX_PROBLEMS problems of the adapter; its text shows the first few."""

    code = "checkpoint_invalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems[:MAX_PROBLEMS])
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        super().__init__(f"the adapter has {count} {noun}", "correct it and publish it again")

    def __str__(self) -> str:
        lines = [super().__str__(), *map(str, self.problems[:SHOWN_PROBLEMS])]
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"and {len(self.problems) - SHOWN_PROBLEMS} more")
        return "\n  ".join(lines)

    def __reduce__(self) -> tuple[type["CheckpointInvalid"], tuple[list[Problem]]]:
        return type(self), (self.problems,)
