"""Run by Alembic: takes the steps on the connection, and in the transaction, that it is given."""

from alembic import context

from adapters.catalog.schema import revision

context.configure(connection=context.config.attributes["connection"], version_table=revision.name)
context.run_migrations()
