"""The catalog's tables. adapters/catalog/migrations creates them.

Knows nothing of what the tables mean or of how a database is reached.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from adapters.names import MAX_ALIAS, MAX_METRIC, MAX_NAME

# The newest revision in adapters/catalog/migrations, known without importing Alembic.
HEAD = "1"

metadata = MetaData()
# Alembic's own: which revision this database has.
revision = Table("catalog_revision", metadata, Column("version_num", String(32), primary_key=True))
# One row: the id that a store of this catalog notes (adapters/catalog/location.py).
identity = Table("catalog_id", metadata, Column("id", String(32), primary_key=True))
adapters = Table(
    "adapters",
    metadata,
    Column("name", String(MAX_NAME), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # The number of a removed version is never reused.
    Column("last_number", Integer, nullable=False),
    # Its share of the engine beside other adapters; a fact of the name, whichever version answers.
    Column("weight", Float, nullable=False),
    # The metric by which what its aliases point at must be better; none if null.
    Column("gate", String(MAX_METRIC)),
)
versions = Table(
    "versions",
    metadata,
    Column("name", ForeignKey("adapters.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("alpha", Float, nullable=False),
    Column("base", String, nullable=False),
    Column("base_digest", String(71)),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("provenance", JSON),
    # The same bytes are one version of a name, even when two publish them at the same moment.
    UniqueConstraint("name", "digest"),
)
# An alias is the set of its rows: one for a plain alias, several for a split.
targets = Table(
    "targets",
    metadata,
    Column("name", String(MAX_NAME), primary_key=True),
    Column("alias", String(MAX_ALIAS), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("weight", Integer, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
)
pins = Table(
    "pins",
    metadata,
    Column("name", String(MAX_NAME), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
)
# Only ever added to; removed with their version.
evaluations = Table(
    "evaluations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(MAX_NAME), nullable=False),
    Column("version", Integer, nullable=False),
    Column("judged_at", DateTime(timezone=True), nullable=False),
    Column("actor", String, nullable=False),
    Column("facts", JSON, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    Index("ix_evaluations_name_version", "name", "version"),
)
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("happened_at", DateTime(timezone=True), nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String(16), nullable=False),
    Column("name", String(MAX_NAME), nullable=False, index=True),
    Column("detail", JSON, nullable=False),
)
# Never removed: the name of a revoked key stays its own, in history, logs and usage.
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("adapters", JSON, nullable=False),
    Column("base", Boolean, nullable=False),
    Column("weight", Float, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("in_flight", BigInteger),
    Column("budget_tokens", BigInteger),
    Column("budget_period", String(8)),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("blocked", Boolean, nullable=False),
    Column("revoked_at", DateTime(timezone=True)),
)
# A key has several while a rotation overlaps: the older ones expire.
key_secrets = Table(
    "key_secrets",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
)
