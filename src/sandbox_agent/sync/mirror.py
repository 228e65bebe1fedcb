"""Makes a class without async from one with it: each method, under the same name, waits for its result."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, cast
from weakref import WeakValueDictionary

from sandbox_agent.sync.portal import Portal, in_thread, portal
from sandbox_agent.wire.records import ListPage

# Called for each piece of a file: in the event loop, because it may not wait.
_DIRECT = frozenset({"progress"})

_classes: dict[type, type[Mirror]] = {}
# By the id of the object, which lives as long as its mirror.
_mirrors: WeakValueDictionary[int, Mirror] = WeakValueDictionary()


class Mirror:
    """An object of the SDK, without async.

    Attributes:
        async_object: the object of the async SDK; for code that runs in the event loop of the portal.
        portal: the thread in which it works.
    """

    async_object: Any
    portal: Portal

    def __repr__(self) -> str:
        return repr(self.async_object)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return wrap(getattr(self.async_object, name), self.portal)


class Context:
    """An async context manager, entered and left without async."""

    def __init__(self, manager: AbstractAsyncContextManager[Any], used: Portal) -> None:
        self._manager = manager
        self._portal = used

    def __enter__(self) -> Any:
        return wrap(self._portal.run(self._manager.__aenter__), self._portal)

    def __exit__(self, *error: Any) -> bool | None:
        return self._portal.run(lambda: self._manager.__aexit__(*error))


class EventIterator(Iterator[Any]):
    """Iterates over what an async iterator yields. Close it, or read it to its end."""

    def __init__(self, iterator: AsyncIterator[Any], used: Portal) -> None:
        self._iterator = iterator
        self._portal = used

    def __next__(self) -> Any:
        try:
            return wrap(self._portal.run(self._iterator.__anext__), self._portal)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the iteration."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            self._portal.run(close)

    def __enter__(self) -> EventIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mirror(source: type) -> Callable[[type], type]:
    """Give a class the members of an async one."""

    def fill(target: type) -> type:
        for name in dir(source):
            if name.startswith("_") or name in vars(target):
                continue
            setattr(target, name, _member(source, name))
        if hasattr(source, "__aenter__"):
            _add(target, "__enter__", _enter)
            _add(target, "__exit__", _exit)
        if hasattr(source, "__aiter__"):
            _add(target, "__iter__", _iterate)
        if hasattr(source, "__anext__"):
            _add(target, "__next__", next_of)
        if hasattr(source, "aclose"):
            _add(target, "close", _close)
        if hasattr(source, "__await__"):
            _add(target, "wait", wait_for)
        target.__doc__ = target.__doc__ or source.__doc__
        _classes[source] = target
        return target

    return fill


def _add(target: type, name: str, function: Callable[..., Any]) -> None:
    if name not in vars(target):
        setattr(target, name, function)


def _member(source: type, name: str) -> Any:
    static = inspect.getattr_static(source, name)
    if isinstance(static, classmethod):
        function = getattr(source, name)

        @functools.wraps(function)
        def create(_cls: type, *args: Any, **kwargs: Any) -> Any:
            return call(function, portal(), args, kwargs)

        return classmethod(cast("Any", create))
    if isinstance(static, property):
        return _property(static, name)
    if not callable(static):
        return property(lambda self: wrap(getattr(self.async_object, name), self.portal))

    @functools.wraps(static)
    def method(self: Mirror, *args: Any, **kwargs: Any) -> Any:
        return call(getattr(self.async_object, name), self.portal, args, kwargs)

    return method


def _property(static: property, name: str) -> property:
    def get(self: Mirror) -> Any:
        value = getattr(self.async_object, name)
        return wrap(getattr(value, "__wrapped__", value) if _is_function(value) else value, self.portal)

    def put(self: Mirror, value: Any) -> None:
        async def change() -> None:
            setattr(self.async_object, name, _unwrap(name, value, self.portal))

        self.portal.run(change)

    return property(get, put if static.fset else None, doc=static.__doc__)


def call(function: Callable[..., Any], used: Portal, args: Any, kwargs: Any) -> Any:
    """Call a function of the async SDK, and return what its result is without async."""
    arguments = [_unwrap("", value, used) for value in args]
    named = {name: _unwrap(name, value, used) for name, value in kwargs.items()}

    async def work() -> Any:
        result = function(*arguments, **named)
        if inspect.isawaitable(result) and type(result) not in _classes:
            result = await result
        return result

    result = used.run(work)
    if inspect.isfunction(result):  # it unregisters a listener
        return lambda: used.run(_later(result))
    return wrap(result, used)


def wrap(value: Any, used: Portal) -> Any:
    """Return what a program sees of a result."""
    kind = next((_classes[one] for one in type(value).__mro__ if one in _classes), None)
    if kind is not None:
        found = _mirrors.get(id(value))
        if found is None:
            found = kind.__new__(kind)
            found.async_object, found.portal = value, used
            _mirrors[id(value)] = found
        return found
    if isinstance(value, ListPage):
        page = cast("ListPage[Any]", value)
        return ListPage([wrap(item, used) for item in page.items], page.next_cursor)
    if isinstance(value, AbstractAsyncContextManager):
        return Context(cast("AbstractAsyncContextManager[Any]", value), used)
    if isinstance(value, AsyncIterator):
        return EventIterator(cast("AsyncIterator[Any]", value), used)
    return value


def _later(function: Callable[[], Any]) -> Callable[[], Any]:
    async def call() -> Any:
        return function()

    return call


def _unwrap(name: str, value: object, used: Portal) -> Any:
    if isinstance(value, Mirror):
        return value.async_object
    if name not in _DIRECT and _is_function(value) and not _is_async(value):
        return in_thread(cast("Callable[..., Any]", value), lambda argument: wrap(argument, used))
    return value


def _is_function(value: object) -> bool:
    """Return whether a value is called with something: a function, or an object that can be called."""
    return callable(value) and not isinstance(value, type | Mirror)


def _is_async(function: object) -> bool:
    called = cast("Any", function)
    return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(type(called).__call__)


def _enter(self: Mirror) -> Mirror:
    self.portal.run(self.async_object.__aenter__)
    return self


def _exit(self: Mirror, *error: Any) -> None:
    self.portal.run(lambda: self.async_object.__aexit__(*error))


def _iterate(self: Mirror) -> Any:
    if hasattr(self.async_object, "__anext__"):
        return self
    return EventIterator(self.async_object.__aiter__(), self.portal)


def next_of(self: Mirror) -> Any:
    """Return the next result of an iterator."""
    try:
        return wrap(self.portal.run(self.async_object.__anext__), self.portal)
    except StopAsyncIteration:
        raise StopIteration from None


def _close(self: Mirror) -> None:
    self.portal.run(self.async_object.aclose)


def wait_for(self: Mirror) -> Any:
    """Wait for the end, and return the result."""

    async def wait() -> Any:
        return await self.async_object

    return wrap(self.portal.run(wait), self.portal)
