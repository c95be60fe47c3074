"""Creates the tables of a catalog's database, with Alembic: one step for each schema.

To change the schema, add versions/schema_N.py and set `adapters.catalog.schema.HEAD`. Alembic is
slow to import, so this package is imported only for a database that has a step to take.
"""

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def upgrade(connection: Connection) -> None:
    """Take the missing steps, in the connection's transaction."""
    config = Config()
    config.set_main_option("script_location", "adapters.catalog:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
