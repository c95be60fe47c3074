"""Alembic runs this file: it takes the steps on the connection that `upgrade` passes in."""

from alembic import context

from adapters.catalog.schema import revision

context.configure(connection=context.config.attributes["connection"], version_table=revision.name)
context.run_migrations()
