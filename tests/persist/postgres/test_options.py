"""Options of libpq, SQLAlchemy and Prisma in a connection string work, or are refused by name."""

from __future__ import annotations

import socket

import anyio
import pytest

from sandbox_agent import InvalidRequestError, PersistError, PostgresSessionPersistDriver, open_driver
from sandbox_agent.persist.postgres.link import Connection, PostgresLink
from sandbox_agent.testing.drivers import make_session
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio


async def store_session(dsn: str) -> None:
    driver = open_driver(dsn)
    assert isinstance(driver, PostgresSessionPersistDriver)
    try:
        await driver.update_session(make_session("s"))
        assert await driver.get_session("s") == make_session("s")
    finally:
        await driver.close()


@pytest.mark.parametrize(
    "options",
    [
        *("channel_binding=prefer", "channel_binding=disable", "connect_timeout=5", "connect_timeout=0"),
        *("sslmode=disable", "sslmode=allow", "sslmode=prefer", "application_name=mine"),
        "sslmode=prefer&sslrootcert=/nowhere/root.crt",
        *("pgbouncer=true", "pgbouncer=false&connect_timeout=5&channel_binding=prefer&application_name=x"),
        "search_path=public&statement_timeout=5000",
    ],
)
async def test_an_option_is_accepted(postgres_dsn: str, options: str) -> None:
    await store_session(f"{postgres_dsn}?{options}")


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgres+asyncpg", "postgresql+psycopg2"])
async def test_a_url_of_sqlalchemy_is_accepted(postgres_dsn: str, scheme: str) -> None:
    await store_session(postgres_dsn.replace("postgresql", scheme))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("channel_binding=require", "channel_binding=require is not supported"),
        ("channel_binding=x", "channel_binding must be one of disable, prefer, not 'x'"),
        ("connect_timeout=soon", "connect_timeout must be a number of seconds, not 'soon'"),
        ("pgbouncer=perhaps", "pgbouncer must be one of true, false, not 'perhaps'"),
        ("sslmode=always", "sslmode must be one of disable, allow, prefer, .*, not 'always'"),
    ],
)
def test_an_option_that_can_not_work_is_refused_at_once(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PostgresSessionPersistDriver(f"postgresql://u:hunter2@h/d?{option}")
    with pytest.raises(InvalidRequestError, match=f"'postgresql://h/d' can't be opened: .*{message}") as info:
        open_driver(f"postgresql://u:hunter2@h/d?{option}")
    assert "hunter2" not in str(info.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("connection_limit=5", 'unrecognized configuration parameter "connection_limit"'),
        ("sslmode=require", "SSL"),
        ("sslmode=verify-full&sslrootcert=/nowhere/root.crt", "sslrootcert: the file does not exist"),
    ],
)
async def test_an_option_that_fails_is_named(postgres_dsn: str, options: str, message: str) -> None:
    with pytest.raises(PersistError, match=message):
        await store_session(f"{postgres_dsn}?{options}")


async def test_the_servers_certificate_is_checked_by_those_of_the_system(postgres_dsn: str) -> None:
    # The server has no TLS at all: that it is refused shows that TLS is required.
    with pytest.raises(PersistError, match="SSL"):
        await store_session(f"{postgres_dsn}?sslrootcert=system")


@pytest.mark.parametrize(("options", "name"), [("application_name=my+app", "my app"), ("", "sandbox-agent")])
async def test_connections_have_the_name_that_the_string_gives_them(
    postgres: PostgresServer, postgres_dsn: str, options: str, name: str
) -> None:
    driver = PostgresSessionPersistDriver(f"{postgres_dsn}?{options}")
    await driver.list_sessions()
    database = postgres_dsn.rpartition("/")[2]
    query = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = $1"
    rows = await anyio.to_thread.run_sync(postgres.execute, query, database)
    assert [row[0] for row in rows] == [name]
    await driver.close()


@pytest.mark.parametrize(("value", "pooled"), [("true", True), ("false", False)])
def test_behind_pgbouncer_nothing_is_prepared_from_the_first_call_on(value: str, *, pooled: bool) -> None:
    async def prepare(_: Connection) -> None:
        return

    assert PostgresLink(f"postgresql://h/d?pgbouncer={value}", prepare=prepare).pooled is pooled


async def test_connecting_takes_no_longer_than_the_string_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        driver = PostgresSessionPersistDriver(f"postgresql://u@127.0.0.1:{port}/d?connect_timeout=1")
        with anyio.fail_after(8), pytest.raises(PersistError, match="can't be reached"):
            await driver.list_sessions()
        await driver.close()
