"""An older catalog is brought forward without loss, a newer one is refused."""

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
from adapters.catalog.aliases import Alias, Target
from adapters.errors import SchemaMismatch

# What a program of schema 1 made of an empty file, as SQLite's .schema shows it.
SCHEMA_1 = """
CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);
CREATE TABLE adapters (
    name VARCHAR(128) NOT NULL,
    created_at DATETIME NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE versions (
    name VARCHAR(128) NOT NULL,
    number INTEGER NOT NULL,
    digest VARCHAR(71) NOT NULL,
    rank INTEGER NOT NULL,
    alpha FLOAT NOT NULL,
    base VARCHAR NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at DATETIME NOT NULL,
    provenance JSON,
    PRIMARY KEY (name, number),
    UNIQUE (name, digest),
    FOREIGN KEY(name) REFERENCES adapters (name)
);
CREATE TABLE aliases (
    name VARCHAR(128) NOT NULL,
    alias VARCHAR(64) NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (name, alias),
    FOREIGN KEY(name, version) REFERENCES versions (name, number)
);
CREATE TABLE events (
    id INTEGER NOT NULL,
    happened_at DATETIME NOT NULL,
    actor VARCHAR NOT NULL,
    action VARCHAR NOT NULL,
    name VARCHAR(128) NOT NULL,
    detail JSON NOT NULL,
    PRIMARY KEY (id)
);
"""
DIGESTS = [f"sha256:{number:064x}" for number in (1, 2)]
CONTENT_1 = f"""
INSERT INTO schema_version VALUES (1);
INSERT INTO adapters VALUES ('orders', '2026-01-02 03:04:05.000006'), ('empty', '2026-01-02');
INSERT INTO versions VALUES
    ('orders', 1, '{DIGESTS[0]}', 8, 16.0, 'tiny', 99, '2026-01-02 03:04:05.000006',
     '{{"a": [1]}}'),
    ('orders', 2, '{DIGESTS[1]}', 4, 8.0, 'tiny', 98, '2026-01-03 03:04:05.000006', 'null');
INSERT INTO aliases VALUES ('orders', 'stable', 2), ('orders', 'old', 1);
INSERT INTO events (happened_at, actor, action, name, detail) VALUES
    ('2026-01-02 03:04:05', 'ann', 'published', 'orders', '{{"version": 1}}'),
    ('2026-01-02 03:04:05', 'ann', 'alias_moved', 'orders',
     '{{"alias": "stable", "from": null, "to": 1}}'),
    ('2026-01-03 03:04:05', 'ben', 'published', 'orders', '{{"version": 2}}'),
    ('2026-01-03 03:04:05', 'ben', 'alias_moved', 'orders',
     '{{"alias": "stable", "from": 1, "to": 2}}');
"""


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA_1 + CONTENT_1)
    connection.close()
    return tmp_path


@pytest.mark.parametrize("create", [True, False])
def test_a_store_of_schema_1_is_brought_forward_without_loss(enter, old_store, create) -> None:
    with Catalog.open(old_store, create=create) as catalog:
        first, second = catalog.list_versions()
        assert (first.label, first.digest, first.rank, first.alpha) == (
            *("orders@1", DIGESTS[0]),
            *(8, 16.0),
        )
        assert (first.base, first.size_bytes, first.aliases) == ("tiny", 99, ("old",))
        assert first.created_at.isoformat() == "2026-01-02T03:04:05.000006+00:00"
        assert (first.provenance, second.provenance) == ({"a": [1]}, None)
        assert (first.base_digest, first.pinned) == (None, False)
        assert catalog.list_aliases() == [
            Alias("orders", "old", (Target(1, 1),)),
            Alias("orders", "stable", (Target(2, 1),)),
        ]
        assert [event.actor for event in catalog.list_events()] == ["ann", "ann", "ben", "ben"]
        assert catalog.rollback("orders", "stable", actor="eve").targets == (Target(1, 1),)
        assert enter(catalog, number=7).label == "orders@3"
        assert enter(catalog, "empty").label == "empty@1"


def test_what_schema_1_was_is_what_the_first_step_makes(old_store, tmp_path) -> None:
    """The raw SQL above and the first migration make the same tables."""
    engine = database._make_engine(database.sqlite_url(tmp_path / "new.db"))
    script = _script()
    with database.writing(engine).begin() as connection:
        context = MigrationContext.configure(connection, opts={"script": script})
        from alembic.operations import Operations

        with Operations.context(context):
            script.get_revision("1").module.upgrade()
    engine.dispose()
    assert _columns(tmp_path / "new.db") == _columns(old_store / "catalog.db")


def _columns(path: Path) -> dict[str, list]:
    connection = sqlite3.connect(path)
    try:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            table: connection.execute(f"PRAGMA table_info({table})").fetchall()
            + connection.execute(f"PRAGMA foreign_key_list({table})").fetchall()
            + connection.execute(f"PRAGMA index_list({table})").fetchall()
            for (table,) in tables.fetchall()
        }
    finally:
        connection.close()


def _script() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "adapters.catalog:migrations")
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def test_the_newest_step_and_those_before_it_are_known_without_alembic() -> None:
    steps = [step.revision for step in _script().walk_revisions()]
    assert steps == [schema.HEAD, *reversed(schema.OLDER)]


@pytest.mark.parametrize("is_old", [False, True])
def test_the_steps_lead_to_the_tables_that_the_program_knows(
    request, catalog_url, tmp_path, is_old
) -> None:
    if is_old:
        if catalog_url:
            pytest.skip("no program of schema 1 ran on PostgreSQL")
        request.getfixturevalue("old_store")
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


@pytest.mark.parametrize("is_old", [False, True])
def test_processes_that_open_at_once_all_succeed(request, catalog_url, tmp_path, is_old) -> None:
    if is_old and catalog_url is None:
        request.getfixturevalue("old_store")
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
        assert len(catalog.list_versions()) == (2 if is_old and catalog_url is None else 0)


def test_a_store_of_the_future_is_refused(tmp_path) -> None:
    Catalog.open(tmp_path).close()
    execute(tmp_path, "UPDATE catalog_revision SET version_num = '77'")
    with pytest.raises(SchemaMismatch, match="has schema 77, this program reads schema 2; use"):
        Catalog.open(tmp_path)


def test_a_program_of_schema_1_refuses_what_was_brought_forward(old_store) -> None:
    """It reads the highest number in this table, and goes on only if it is 1."""
    Catalog.open(old_store).close()
    assert execute(old_store, "SELECT max(version) FROM schema_version") == [(2,)]


def test_a_step_that_fails_changes_nothing(old_store) -> None:
    execute(old_store, "CREATE TABLE pins (mine INTEGER)")
    before = _columns(old_store / "catalog.db")
    with pytest.raises(SchemaMismatch, match="schema 1 and could not be brought to schema 2"):
        Catalog.open(old_store)
    assert _columns(old_store / "catalog.db") == before
    execute(old_store, "DROP TABLE pins")
    with Catalog.open(old_store) as catalog:
        assert len(catalog.list_versions()) == 2


def execute(store: Path, statement: str) -> list:
    connection = sqlite3.connect(store / "catalog.db")
    with connection:
        found = connection.execute(statement).fetchall()
    connection.close()
    return found


def test_opening_what_needs_no_step_does_not_import_alembic(enter, tmp_path) -> None:
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
