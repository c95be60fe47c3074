"""Schema 2: weighted aliases, pins, the base's digest, numbers that are never given again."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    op.add_column(
        "adapters", sa.Column("last_number", sa.Integer, nullable=False, server_default="0")
    )
    op.execute(
        "UPDATE adapters SET last_number ="
        " (SELECT max(number) FROM versions WHERE versions.name = adapters.name)"
        " WHERE name IN (SELECT name FROM versions)"
    )
    op.add_column("versions", sa.Column("base_digest", sa.String(71)))
    op.create_table(
        "targets",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    )
    op.execute(
        "INSERT INTO targets (name, alias, version, weight)"
        " SELECT name, alias, version, 1 FROM aliases"
    )
    op.drop_table("aliases")
    op.create_table(
        "pins",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    )
    op.create_index("ix_events_name", "events", ["name"])
    # Programs of schema 1 read this table, and refuse what is not 1.
    op.execute("DELETE FROM schema_version")
    op.execute("INSERT INTO schema_version (version) VALUES (2)")
