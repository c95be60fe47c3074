"""A fresh database gets the schema in one step, a catalog of another schema is refused."""

import multiprocessing
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from adapters.catalog import Catalog, database, schema
from adapters.errors import CatalogUnreadable, SchemaMismatch


def test_the_newest_step_is_known_without_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", "adapters.catalog:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_the_steps_lead_to_the_tables_that_the_program_knows(catalog_url, tmp_path) -> None:
    Catalog.open(tmp_path, catalog_url).close()
    engine = database._make_engine(catalog_url or database.sqlite_url(tmp_path / "catalog.db"))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": schema.revision.name, "compare_server_default": True}
        )
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def open_at_once(folder: Path, url: str | None, start) -> None:
    start.wait(10)
    with Catalog.open(folder, url) as catalog:
        catalog.list_versions()


def test_processes_that_open_at_once_all_succeed(catalog_url, tmp_path) -> None:
    """Processes, because SQLite's file locks act between processes."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    arguments = (tmp_path, catalog_url, start)
    workers = [context.Process(target=open_at_once, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with Catalog.open(tmp_path, catalog_url, create=False) as catalog:
        assert catalog.list_versions() == []


def test_a_store_of_the_future_is_refused(tmp_path) -> None:
    Catalog.open(tmp_path).close()
    execute(tmp_path, "UPDATE catalog_revision SET version_num = '77'")
    with pytest.raises(SchemaMismatch, match="has schema 77, this program reads schema 1; use"):
        Catalog.open(tmp_path)


def test_a_step_that_fails_changes_nothing(tmp_path) -> None:
    execute(tmp_path, "CREATE TABLE pins (mine INTEGER)")
    with pytest.raises(CatalogUnreadable, match="pins"):
        Catalog.open(tmp_path)
    tables = execute(tmp_path, "SELECT name FROM sqlite_master WHERE type = 'table'")
    assert tables == [("pins",)]
    execute(tmp_path, "DROP TABLE pins")
    Catalog.open(tmp_path).close()


def execute(store: Path, statement: str) -> list:
    connection = sqlite3.connect(store / "catalog.db")
    with connection:
        found = connection.execute(statement).fetchall()
    connection.close()
    return found


def test_opening_what_needs_no_step_does_not_import_alembic(enter, tmp_path) -> None:
    """In a process of its own: this one has imported Alembic."""
    with Catalog.open(tmp_path) as catalog:
        enter(catalog)
    script = (
        "import sys; from pathlib import Path; from adapters.catalog import Catalog\n"
        "from adapters.names import parse_reference\n"
        "with Catalog.open(Path(sys.argv[1]), create=False) as catalog:\n"
        "    print(catalog.resolve(parse_reference('orders')).label, 'alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "orders@1 False\n"
