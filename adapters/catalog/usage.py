"""What keys have used of adapters, by hour: the tables, and the totals that are read from them.

In PostgreSQL the tables are the catalog's neighbours. Beside a catalog in a file they are a file of
their own: each write to the catalog's would make every server forget the names that it knows.

Each server writes its own totals of an hour, again and again, and never adds: a write that is
repeated changes nothing. Knows nothing of calls.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    inspect,
    literal,
    or_,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from adapters.catalog.database import BUSY_SECONDS, copy_sqlite, sqlite_url
from adapters.catalog.failures import sqlite_path, unreadable, unwritten
from adapters.catalog.limits import RuleId
from adapters.catalog.versions import as_utc
from adapters.errors import BadField, BadMoment, quote
from adapters.names import MAX_NAME
from adapters.sums import MAX_PARTS

Field = Literal["key", "adapter", "version", "hour", "day", "month"]
FIELDS: tuple[Field, ...] = ("key", "adapter", "version", "hour", "day", "month")
SUM_SIGN = "+"
OTHER_SUMS = "_sums"  # of a key that has called many combinations: it counts for each adapter
_AGO = re.compile(r"([0-9]{1,5})([hd])")
_MOST_ROWS = 1000  # of one statement: SQLite has 32,766 variables for one
_LOCK = 0x6C6F727280  # the advisory lock of those who make tables in PostgreSQL

metadata = MetaData()
usage = Table(
    "usage",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("key", String(MAX_NAME), primary_key=True),
    Column("adapter", String((MAX_NAME + 1) * MAX_PARTS), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("server", String(32), primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("generation_tokens", BigInteger, nullable=False),
    Column("cached_prompt_tokens", BigInteger, nullable=False),
    Column("engine_seconds", Float, nullable=False),
    Index("ix_usage_key_hour", "key", "hour"),
    Index("ix_usage_adapter_hour", "adapter", "hour"),
)


class UsageId(NamedTuple):
    """Whose use of what in which hour; without a key or for the base, as the metrics label it.

    `adapter` of a sum has the names of its parts, in order, with SUM_SIGN between them.
    """

    hour: datetime
    key: str
    adapter: str
    version: int  # 0: of the base, or of no adapter


@dataclass(slots=True)
class Amounts:
    """`calls` have ended, `failed` of them otherwise than well. `engine_seconds` is the sum over
    their answers from the engine's first step for one to its last token: answers share steps."""

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_prompt_tokens: int = 0
    engine_seconds: float = 0.0

    def add(self, other: Amounts) -> None:
        for name, amount in asdict(other).items():
            setattr(self, name, getattr(self, name) + amount)

    def charged(self, count_cached: bool) -> int:
        """The tokens that a budget counts."""
        cached = 0 if count_cached else self.cached_prompt_tokens
        return self.prompt_tokens + self.generation_tokens - cached


_KINDS = {name: type(amount) for name, amount in asdict(Amounts()).items()}
_AMOUNTS = tuple(_KINDS)


class UsageBook:
    """The usage beside one catalog; safe to use from several threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def beside(cls, catalog: Engine) -> UsageBook:
        """The book of a catalog; nothing is opened yet."""
        path = sqlite_path(catalog)
        return cls(catalog if path is None else _open_file(book_path(path)))

    @property
    def is_shared(self) -> bool:
        """Whether it is on a database server, which other servers may use too."""
        return sqlite_path(self._engine) is None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction; raises an AdapterError."""
        engine = self._engine
        if not self.is_shared:
            engine = engine.execution_options(is_writing=True)
        try:
            with engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise unwritten(self._engine, error) from error

    def prepare(self) -> None:
        """Make the tables where there are none; raises an AdapterError."""
        with self.writing() as connection:
            if self.is_shared:
                # The lock takes a statement of its own: what is read then is what others have made.
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            metadata.create_all(connection)

    def copy_to(self, file: Path) -> bool:
        """Write a copy of the file; False where there is none yet. Raises an AdapterError."""
        path = sqlite_path(self._engine)
        if path is None or not path.exists():
            return False
        try:
            copy_sqlite(path, file)
        except sqlite3.Error as error:
            raise unwritten(self._engine, error) from error
        return True

    def report(
        self,
        by: Sequence[Field],
        since: datetime,
        until: datetime | None = None,
        key: str | None = None,
    ) -> list[dict[str, Any]]:
        """Sums over the hours from that of `since` on and before `until`, one for each value of the
        fields `by`, in their order; of one key, or of all. Raises an AdapterError."""
        wanted = [usage.c.hour >= since.replace(minute=0, second=0, microsecond=0)]
        if until is not None:
            wanted.append(usage.c.hour < until)
        if key is not None:
            wanted.append(usage.c.key == key)
        sums: dict[tuple[Any, ...], Amounts] = {}
        for id_, amounts in self._read(*wanted):
            group = tuple(_value(id_, column) for column in by)
            sums.setdefault(group, Amounts()).add(amounts)
        return [
            dict(zip(by, group, strict=True)) | asdict(amounts)
            for group, amounts in sorted(sums.items())
        ]

    def _read(self, *wanted: ColumnElement[bool]) -> list[tuple[UsageId, Amounts]]:
        path = sqlite_path(self._engine)
        if path is not None and not path.exists():
            return []
        try:
            with self._engine.connect() as connection:
                is_there = inspect(connection).has_table(usage.name)
                return list(select_usage(connection, *wanted)) if is_there else []
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise unreadable(self._engine, error) from error


def parse_moment(text: str, now: datetime) -> datetime:
    """`7d` or `24h` before `now`, or a date, or a moment; without a zone it is UTC.

    Raises BadMoment.
    """
    if match := _AGO.fullmatch(text):
        unit = {"h": timedelta(hours=1), "d": timedelta(days=1)}[match[2]]
        return now - int(match[1]) * unit
    try:
        return as_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise BadMoment(
            f"{quote(text)} is no moment", "write 24h, 7d, 2026-11-30 or 2026-11-30T12:00Z"
        ) from None


def parse_fields(text: str) -> tuple[Field, ...]:
    """Fields to sum by, with commas between them. Raises BadField."""
    found: dict[Field, None] = {}
    for each in filter(None, map(str.strip, text.split(","))):
        if each not in FIELDS:
            raise BadField(
                f"usage is not counted by {quote(each)}", f"take some of {', '.join(FIELDS)}"
            )
        found[each] = None
    return tuple(found)


def book_path(catalog: Path) -> Path:
    """The file of the usage beside a catalog's: catalog.usage.db."""
    return catalog.with_name(f"{catalog.stem}.usage.db")


def select_usage(connection: Connection, *wanted: Any) -> Iterator[tuple[UsageId, Amounts]]:
    """The usage of all servers together."""
    whose = [usage.c[name] for name in UsageId._fields]
    sums = [func.sum(usage.c[name]) for name in _AMOUNTS]
    for row in connection.execute(select(*whose, *sums).where(*wanted).group_by(*whose)):
        hour, key, adapter, version, *amounts = row
        sums_of = zip(_AMOUNTS, amounts, strict=True)
        id_ = UsageId(as_utc(hour), key, adapter, version)
        yield id_, Amounts(**{name: _KINDS[name](amount) for name, amount in sums_of})


def write_usage(connection: Connection, server: str, totals: Mapping[UsageId, Amounts]) -> None:
    """Put down what one server's calls have used in an hour, in place of what stands there."""
    rows = [id_._asdict() | {"server": server} | asdict(amounts) for id_, amounts in totals.items()]
    for begin in range(0, len(rows), _MOST_ROWS):
        upsert(connection, usage, rows[begin : begin + _MOST_ROWS])


def upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or replace those of the same primary key."""
    insert: Any  # of a dialect: imported where it is used, as PostgreSQL's takes long
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    statement = insert(table).values(list(rows))
    key = [column.name for column in table.primary_key]
    new = {name: statement.excluded[name] for name in rows[0] if name not in key}
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=new))


class Spending:
    """What of budgets is spent, by the usage. For one thread.

    Hours that are over are read every ten minutes, the latest two each time.
    """

    _AGAIN_SECONDS = 600.0

    def __init__(self, count_cached: bool) -> None:
        self._count_cached = count_cached
        self._known: dict[tuple[RuleId, datetime, datetime], int] = {}
        self._read_at = 0.0

    def read(
        self, connection: Connection, budgets: Mapping[RuleId, datetime], now: datetime
    ) -> dict[RuleId, int]:
        """The tokens that each has spent until now, since the moment that its period began."""
        if time.monotonic() - self._read_at > self._AGAIN_SECONDS:
            self._known.clear()
            self._read_at = time.monotonic()
        recent = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        latest = list(select_usage(connection, usage.c.hour >= recent)) if budgets else []
        spent = {}
        for rule, began in budgets.items():
            known = (rule, began, recent)
            if known not in self._known:
                earlier = (usage.c.hour >= began, usage.c.hour < recent, *_of(rule))
                self._known[known] = self._sum(select_usage(connection, *earlier))
            met = (each for each in latest if each[0].hour >= began and _meets(rule, each[0]))
            spent[rule] = self._known[known] + self._sum(met)
        return spent

    def _sum(self, found: Iterable[tuple[UsageId, Amounts]]) -> int:
        return sum(amounts.charged(self._count_cached) for _, amounts in found)


def _of(rule: RuleId) -> Iterator[ColumnElement[bool]]:
    if rule.key:
        yield usage.c.key == rule.key
    if rule.adapter:
        named = literal(SUM_SIGN).concat(usage.c.adapter).concat(SUM_SIGN)
        part = named.contains(f"{SUM_SIGN}{rule.adapter}{SUM_SIGN}", autoescape=True)
        yield or_(part, usage.c.adapter == OTHER_SUMS)


def _meets(rule: RuleId, used: UsageId) -> bool:
    names = ("", *used.adapter.split(SUM_SIGN))
    is_of_it = rule.adapter in names or used.adapter == OTHER_SUMS
    return rule.key in ("", used.key) and is_of_it


def _value(id_: UsageId, column: Field) -> str | int:
    match column:
        case "hour":
            return f"{id_.hour:%Y-%m-%dT%H:00Z}"
        case "day":
            return f"{id_.hour:%Y-%m-%d}"
        case "month":
            return f"{id_.hour:%Y-%m}"
        case _:
            value: str | int = getattr(id_, column)
            return value


def _open_file(path: Path) -> Engine:
    """An engine on a SQLite file, made when it is first used; each use opens it anew."""
    engine = create_engine(sqlite_url(path), poolclass=NullPool)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
