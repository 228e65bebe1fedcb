"""Drivers that are plain classes: five methods without a base class, as the TypeScript SDK has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import msgspec

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.records import (
    ListEventsRequest,
    ListPage,
    ListPageRequest,
    SessionEvent,
    SessionRecord,
)

__all__ = ["PlainDriver", "adapt_driver"]

T = TypeVar("T")
_Method: TypeAlias = Callable[..., Any]


class _SnakeDriver(Protocol):
    @property
    def get_session(self) -> _Method: ...
    @property
    def list_sessions(self) -> _Method: ...
    @property
    def update_session(self) -> _Method: ...
    @property
    def list_events(self) -> _Method: ...
    @property
    def insert_event(self) -> _Method: ...


class _CamelDriver(Protocol):
    @property
    def getSession(self) -> _Method: ...  # noqa: N802 - the names of the TypeScript SDK
    @property
    def listSessions(self) -> _Method: ...  # noqa: N802
    @property
    def updateSession(self) -> _Method: ...  # noqa: N802
    @property
    def listEvents(self) -> _Method: ...  # noqa: N802
    @property
    def insertEvent(self) -> _Method: ...  # noqa: N802


PlainDriver: TypeAlias = _SnakeDriver | _CamelDriver
"""An object with the five methods of a driver, in snake_case or camelCase."""


class _Form(NamedTuple):
    """Arguments that a method may take."""

    args: tuple[str, ...]
    keywords: tuple[str, ...] = ()

    def fits(self, method: _Method) -> bool:
        try:
            inspect.signature(method).bind(*self.args, **dict.fromkeys(self.keywords))
        except TypeError:
            return False
        return True

    def __str__(self) -> str:
        return f"({', '.join([*self.args, *(f'{name}=' for name in self.keywords)])})"


_BY_REQUEST = _Form(("request",))
_EVENT_ONLY = _Form(("event",))
_PAGE = ("limit", "cursor")
# The first form that a method can be called with counts.
_FORMS: dict[str, tuple[_Form, ...]] = {
    "get_session": (_Form(("session_id",)),),
    "list_sessions": (_Form((), _PAGE), _BY_REQUEST),
    "update_session": (_Form(("session",)),),
    "list_events": (_Form(("session_id",), _PAGE), _BY_REQUEST),
    "insert_event": (_Form(("session_id", "event")), _EVENT_ONLY),
}


def adapt_driver(plain: object) -> SessionPersistDriver:
    """Return a driver that calls the five methods of an object.

    The methods may be async or not, and return dicts instead of SessionRecord, SessionEvent and ListPage.

    Raises:
        TypeError: the object is a class, lacks a method, or has one that takes other arguments.
    """
    if isinstance(plain, SessionPersistDriver):
        return plain
    if isinstance(plain, type):
        raise TypeError(f"persist must be a SessionPersistDriver, not a class: use {plain.__name__}(...)")
    methods = {name: _find(plain, name) for name in _FORMS}
    missing = [name for name, method in methods.items() if method is None]
    if len(missing) == len(methods):
        raise TypeError(
            f"persist must be a SessionPersistDriver or a store URL such as 'sqlite:agent.db', not {plain!r}"
        )
    if missing:
        raise TypeError(f"{type(plain).__name__} is not a driver: it has no {', '.join(missing)}")
    return _AdaptedDriver(plain, {name: cast("_Method", method) for name, method in methods.items()})


class _AdaptedDriver(SessionPersistDriver):
    """Calls a plain object; the base class has everything beyond the five methods."""

    def __init__(self, plain: object, methods: Mapping[str, _Method]) -> None:
        self._plain = plain
        self._methods = methods
        self._forms = {name: self._form(name, method) for name, method in methods.items()}

    def __repr__(self) -> str:
        return f"<driver of {self._plain!r}>"

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        found = await self._call("get_session", session_id)
        return None if found is None else self._read(found, SessionRecord, "get_session")

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        if self._forms["list_sessions"] is _BY_REQUEST:
            found = await self._call("list_sessions", ListPageRequest(limit=limit, cursor=cursor))
        else:
            found = await self._call("list_sessions", limit=limit, cursor=cursor)
        return self._page(found, SessionRecord, "list_sessions")

    async def update_session(self, session: SessionRecord, /) -> None:
        await self._call("update_session", session)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        if self._forms["list_events"] is _BY_REQUEST:
            request = ListEventsRequest(session_id=session_id, limit=limit, cursor=cursor)
            found = await self._call("list_events", request)
        else:
            found = await self._call("list_events", session_id, limit=limit, cursor=cursor)
        return self._page(found, SessionEvent, "list_events")

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        before = () if self._forms["insert_event"] is _EVENT_ONLY else (session_id,)
        await self._call("insert_event", *before, event)

    async def close(self) -> None:
        close = getattr(self._plain, "close", None)
        if close is not None:
            await _wait(close())

    async def _call(self, name: str, *args: object, **options: object) -> object:
        return await _wait(self._methods[name](*args, **options))

    def _form(self, name: str, method: _Method) -> _Form:
        forms = _FORMS[name]
        for form in forms:
            if form.fits(method):
                return form
        wanted = " or ".join(map(str, forms))
        raise TypeError(f"{type(self._plain).__name__}.{name} must take {wanted}")

    def _page(self, found: object, kind: type[T], method: str) -> ListPage[T]:
        items, cursor = found, None
        if isinstance(found, ListPage):
            page = cast("ListPage[object]", found)
            items, cursor = page.items, page.next_cursor
        elif isinstance(found, Mapping):
            fields = {_camel(name): field for name, field in cast("Mapping[str, object]", found).items()}
            items, cursor = fields.get("items"), fields.get("nextCursor")
        if not isinstance(items, list | tuple) or not isinstance(cursor, str | None):
            given = cast("object", found)
            raise self._error(method, "a ListPage, a dict with items and nextCursor, or a list", given)
        return ListPage([self._read(item, kind, method) for item in cast("list[object]", items)], cursor)

    def _read(self, value: object, kind: type[T], method: str) -> T:
        if isinstance(value, kind):
            return value
        wanted = f"{kind.__name__}s, or dicts with its fields"
        if not isinstance(value, Mapping):
            raise self._error(method, wanted, value)
        given = cast("Mapping[str, object]", value)
        fields = {_camel(name): field for name, field in given.items()}
        try:
            if kind is SessionEvent:
                return cast("T", SessionEvent.from_dict(fields))
            return msgspec.convert(fields, kind)
        except msgspec.ValidationError as error:
            raise self._error(method, wanted, given, f": {error}") from error

    def _error(self, method: str, wanted: str, found: object, why: str = "") -> TypeError:
        name = type(self._plain).__name__
        return TypeError(f"{name}.{method} must return {wanted}, not {type(found).__name__}{why}")


async def _wait(result: object) -> object:
    return await result if inspect.isawaitable(result) else result


def _find(plain: object, name: str) -> _Method | None:
    found = getattr(plain, name, None) or getattr(plain, _camel(name), None)
    return found if callable(found) else None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
