"""A store's URL and the driver that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.open import KEY_VARIABLE, open_driver, parse_store_url
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store.view import StoreDriver
from sandbox_agent.testing.drivers import make_session

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("url", "kind", "where"),
    [
        ("memory", "memory", "memory"),
        ("memory:", "memory", "memory"),
        ("sqlite:a/b.db", "sqlite", "a/b.db"),
        ("sqlite:/a/b.db", "sqlite", "/a/b.db"),
        ("sqlite:///a/b.db", "sqlite", "/a/b.db"),
        ("a.db", "sqlite", "a.db"),
        ("./with:colon.db", "sqlite", "./with:colon.db"),
        ("C:\\stores\\a.db", "sqlite", "C:\\stores\\a.db"),
        ("postgres://h/d", "postgres", "postgres://h/d"),
        ("PostgreSQL://h/d", "postgres", "PostgreSQL://h/d"),
        ("redis://h/1", "redis", "redis://h/1"),
        ("rediss://h", "redis", "rediss://h"),
        ("valkey://h", "redis", "valkey://h"),
    ],
)
def test_a_url_names_a_driver_and_a_place(url: str, kind: str, where: str) -> None:
    assert parse_store_url(url) == (kind, where, False)
    assert parse_store_url("encrypted+" + url) == (kind, where, True)


@pytest.mark.parametrize("url", ["mysql://root:hunter2@h/d", "encrypted+s3://root:hunter2@b"])
def test_an_unknown_scheme_is_refused_with_what_is_known_and_without_the_password(url: str) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"no store is known for '(mysql|s3):': give memory"
    ) as info:
        open_driver(url)
    assert "hunter2" not in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite://", "redis:h", "postgres:hunter2"])
def test_a_url_without_a_place_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError) as info:
        parse_store_url(url)
    assert "hunter2" not in str(info.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:a.db", "a.db"),
        ("memory", "memory"),
        ("postgres://u:hunter2@h:5432/d?sslmode=require", "postgres://h:5432/d"),
        ("postgres://h/d?password=hunter2", "postgres://h/d"),
        ("redis://:hunter2@h/1", "redis://h/1"),
        ("redis://u:x/hunter2@h/1", "redis://…"),
        ("redis://u:x?hunter2@h/1", "redis://…"),
        ("redis://u:x#hunter2@h/1", "redis://…"),
        ("redis://u:x@hunter2@h/1", "redis://h/1"),
        ("postgres://h/d?user=a@b&password=hunter2", "postgres://…"),
        ("encrypted+redis://:hunter2@h", "encrypted+redis://h"),
    ],
)
def test_what_is_shown_of_a_url_has_no_password(url: str, shown: str) -> None:
    assert parse_store_url(url).shown == shown


@pytest.mark.parametrize("url", ["memory", "sqlite:a.db"])
def test_a_store_without_namespaces_says_so(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="has no namespaces"):
        open_driver(url, namespace="team")


async def test_drivers_are_those_of_their_urls(tmp_path: Path) -> None:
    assert isinstance(open_driver("memory"), InMemorySessionPersistDriver)
    path = tmp_path / "s.db"
    driver = open_driver(f"sqlite:{path}")
    assert isinstance(driver, SQLiteSessionPersistDriver)
    assert not path.exists()
    await driver.update_session(make_session("s"))
    await driver.close()
    again = open_driver(str(path))
    assert await again.get_session("s") == make_session("s")
    await again.close()


async def test_an_encrypted_store_needs_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(InvalidRequestError, match=f"set {KEY_VARIABLE} to 32 random bytes as base64"):
        open_driver(f"encrypted+sqlite:{tmp_path / 's.db'}")


async def test_a_servers_own_file_shows_its_sessions(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    writer, reader = SQLiteThread(path), SQLiteThread(path, read_only=True)
    store = SQLiteSessionStore(writer, reader)
    await store.open()
    await reader.close()
    await writer.close()
    driver = open_driver(f"sqlite:{path}")
    assert isinstance(driver, StoreDriver)
    assert (await driver.list_sessions()).items == []
    await driver.close()


@pytest.mark.parametrize("url", ["postgres://h/d", "redis://h"])
async def test_a_namespace_means_a_servers_sessions(url: str) -> None:
    driver = open_driver(url, namespace="team")
    assert isinstance(driver, StoreDriver)
    await driver.close()


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("redis", "redis://HOST/…"),
        ("Postgres", "postgres://HOST/…"),
        ("sqlite", "sqlite:PATH"),
        ("bogus", "use ./bogus to make that file"),
        ("encrypted+bogus", "use ./bogus to make that file"),
    ],
)
def test_a_word_that_names_no_file_is_refused(
    word: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError) as info:
        open_driver(word)
    assert advice in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_a_word_that_names_a_file_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sessions").touch()
    assert parse_store_url("sessions") == ("sqlite", "sessions", False)
    assert parse_store_url("./redis") == ("sqlite", "./redis", False)


@pytest.mark.parametrize("prefix", ["", "sqlite:", "encrypted+sqlite:"])
def test_a_store_in_a_folder_that_does_not_exist_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"sessoins' does not exist; make it, or correct the path"):
        open_driver(f"{prefix}{tmp_path}/sessoins/s.db")
    assert list(tmp_path.iterdir()) == []
