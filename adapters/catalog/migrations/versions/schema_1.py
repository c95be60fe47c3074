"""Schema 1: weighted adapters, versions, weighted aliases, pins, evaluations, events,
the catalog's id, and keys with the digests of their secrets."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    identity = op.create_table("catalog_id", sa.Column("id", sa.String(32), primary_key=True))
    op.bulk_insert(identity, [{"id": uuid4().hex}])
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("last_number", sa.Integer, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("gate", sa.String(200)),
    )
    op.create_table(
        "versions",
        sa.Column("name", sa.String(128), sa.ForeignKey("adapters.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("alpha", sa.Float, nullable=False),
        sa.Column("base", sa.String, nullable=False),
        sa.Column("base_digest", sa.String(71)),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("provenance", sa.JSON),
        sa.UniqueConstraint("name", "digest"),
    )
    op.create_table(
        "targets",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    )
    op.create_table(
        "pins",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("judged_at", moment, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    )
    op.create_index("ix_evaluations_name_version", "evaluations", ["name", "version"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("happened_at", moment, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("name", sa.String(128), nullable=False, index=True),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("adapters", sa.JSON, nullable=False),
        sa.Column("base", sa.Boolean, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("in_flight", sa.BigInteger),
        sa.Column("budget_tokens", sa.BigInteger),
        sa.Column("budget_period", sa.String(8)),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("revoked_at", moment),
    )
    op.create_table(
        "key_secrets",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id"), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
    )
