"""How a catalog's database comes to the present schema, step by step, with Alembic.

A fresh database takes the same steps. A new step: add versions/schema_N.py, and set
`adapters.catalog.schema.HEAD`. Imported only when a database has a step to take.
"""

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

FIRST = "1"


def upgrade(connection: Connection, *, is_old: bool) -> None:
    """Take the missing steps in the connection's transaction; `is_old`: from before Alembic."""
    config = Config()
    config.set_main_option("script_location", "adapters.catalog:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    if is_old:
        command.stamp(config, FIRST)
    command.upgrade(config, "head")
