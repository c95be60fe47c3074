"""How servers that share a catalog in PostgreSQL divide the limits: what each may use of them.

Each server puts down its own stake in each limit that its calls meet, and reads those of others,
one server at a time: a share grows by what the others have put down before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, Column, Connection, DateTime, Float, String, Table, func, select

from adapters.catalog.usage import metadata, upsert
from adapters.names import MAX_NAME

SILENT_SECONDS = 15.0  # after which what a server had not used goes to others
GONE_SECONDS = 75.0  # after which nothing that it used counts any more
WINDOWS = ("requests", "tokens")  # kinds of limits for which what was used counts for a minute
_LOCK = 0x6C6F727281  # the advisory lock of a round

stakes = Table(
    "limit_stakes",
    metadata,
    Column("key", String(MAX_NAME), primary_key=True),
    Column("adapter", String(MAX_NAME), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("server", String(32), primary_key=True),
    Column("share", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("demand", Float, nullable=False),
    Column("short", BigInteger, nullable=False),
)
servers = Table(
    "limit_servers",
    metadata,
    Column("server", String(32), primary_key=True),
    Column("seen_at", DateTime(timezone=True), nullable=False),
)


class StakeId(NamedTuple):
    """A limit: whose, and on what."""

    key: str
    adapter: str
    kind: str


@dataclass(frozen=True, slots=True)
class Stake:
    """What one server says of a limit to the others."""

    share: int = 0  # of the limit, which it may use without asking
    used: int = 0
    demand: float = 0.0  # asked for of late
    short: int = 0  # what calls that wait for a larger share need


@dataclass(frozen=True, slots=True)
class Others:
    """The other servers: how many live, and their stakes."""

    count: int
    stakes: Mapping[StakeId, list[Stake]]


def begin_round(connection: Connection, server: str) -> Others:
    """Say that this server lives, forget those that are gone, and read the others' stakes.

    Other servers' rounds wait until the transaction ends.
    """
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    now = func.clock_timestamp()
    upsert(connection, servers, [{"server": server, "seen_at": now}])
    silence = func.extract("epoch", now - servers.c.seen_at)
    silent = {
        row.server: float(row.silence)
        for row in connection.execute(select(servers.c.server, silence.label("silence")))
    }
    gone = [each for each, seconds in silent.items() if seconds > GONE_SECONDS]
    leave(connection, *gone)
    found: dict[StakeId, list[Stake]] = {}
    for row in connection.execute(select(stakes).where(stakes.c.server != server)):
        seconds = silent.get(row.server, GONE_SECONDS)
        if seconds < GONE_SECONDS:
            id_ = StakeId(row.key, row.adapter, row.kind)
            stake = Stake(row.share, row.used, row.demand, row.short)
            found.setdefault(id_, []).append(_without_sender(id_, stake, seconds))
    return Others(len(silent) - len(gone) - 1, found)


def _without_sender(id_: StakeId, stake: Stake, seconds: float) -> Stake:
    """What a stake still says after so much silence: the sender has ended, or can't be reached."""
    if seconds < SILENT_SECONDS:
        return stake
    used = stake.used if id_.kind in WINDOWS else 0
    return Stake(used, used)


def put_down(connection: Connection, server: str, own: Mapping[StakeId, Stake]) -> None:
    rows = [id_._asdict() | {"server": server} | asdict(stake) for id_, stake in own.items()]
    if rows:
        upsert(connection, stakes, rows)


def withdraw(connection: Connection, server: str, ids: Iterable[StakeId]) -> None:
    """Stakes in limits that no call of this server meets any more."""
    for id_ in ids:
        whose = [stakes.c[name] == value for name, value in id_._asdict().items()]
        connection.execute(stakes.delete().where(stakes.c.server == server, *whose))


def leave(connection: Connection, *gone: str) -> None:
    """Forget servers and their stakes."""
    if gone:
        for table in (stakes, servers):
            connection.execute(table.delete().where(table.c.server.in_(gone)))
