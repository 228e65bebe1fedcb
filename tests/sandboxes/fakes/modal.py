"""A stand-in for the module ``modal``, whose calls are held against the real signatures.

Modal's protocol needs a server of many remote procedure calls. So this takes the place of its module: its
sandboxes run commands on this machine, and each call is one that the real module would accept.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import modal
from modal import exception
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tests.sandboxes.fakes.service import Box, FakeService

_ERRORS: dict[int, type[Exception]] = {
    400: exception.InvalidError,
    401: exception.AuthError,
    403: exception.PermissionDeniedError,
    404: exception.NotFoundError,
    429: exception.ResourceExhaustedError,
    503: exception.ServiceError,
}


def _signature(owner: Any, name: str) -> inspect.Signature:
    method = getattr(owner, name)
    return inspect.signature(getattr(method, "aio", method))


class FakeModal(FakeService):
    credentials: ClassVar[tuple[str, str]] = ("x-unused", "")

    def __init__(self, home: Path, programs: Path) -> None:
        super().__init__(home, programs)
        self._apps: set[str] = set()

    def routes(self) -> Sequence[BaseRoute]:
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        return [Route("/port/{id}/{port:int}/{path:path}", self._port, methods=methods)]

    async def _port(self, request: Request) -> Response:
        if request.path_params["id"] not in self.boxes:
            return Response("no such sandbox", 502)
        return await self.forward(request, request.path_params["port"], f"/{request.path_params['path']}")

    def module(self) -> ModuleType:
        """Return what takes the place of the module ``modal``."""
        module = ModuleType("modal")
        module.__spec__ = modal.__spec__
        names: dict[str, Any] = {
            "exception": exception,
            "App": SimpleNamespace(lookup=self._method(modal.App, "lookup", self._lookup)),
            "Image": SimpleNamespace(from_registry=self._image),
            "Sandbox": SimpleNamespace(
                create=self._method(modal.Sandbox, "create", self._create),
                from_name=self._method(modal.Sandbox, "from_name", self._from_name),
                list=self._generator(modal.Sandbox, "list", self._list),
            ),
        }
        for name, value in names.items():
            setattr(module, name, value)
        return module

    def _method(self, owner: Any, name: str, call: Callable[..., Any], *bound: Any) -> SimpleNamespace:
        """Return a method that records its calls and refuses those that the real one would refuse."""
        signature = _signature(owner, name)

        async def aio(*args: Any, **options: Any) -> Any:
            signature.bind(*bound, *args, **options)
            self.requests.append((f"{getattr(owner, '__name__', owner)}.{name}", str(args), options))
            return await call(*args, **options)

        return SimpleNamespace(aio=aio)

    def _generator(self, owner: Any, name: str, call: Callable[..., Any]) -> SimpleNamespace:
        signature = _signature(owner, name)

        def aio(*args: Any, **options: Any) -> Any:
            signature.bind(*args, **options)
            self.requests.append((f"{owner.__name__}.{name}", str(args), options))
            return call(*args, **options)

        return SimpleNamespace(aio=aio)

    def native_error(self, status: int) -> Exception:
        return _ERRORS[status](f"made to fail with {status}")

    def _fail(self, name: str) -> None:
        failure = self.failures.get(name)
        if failure is not None and failure.times > 0:
            failure.times -= 1
            raise self.native_error(failure.status)

    def _image(self, tag: str, **options: Any) -> Any:
        _signature(modal.Image, "from_registry").bind(tag, **options)

        def apt_install(*packages: str) -> tuple[Any, ...]:
            _signature(modal.Image, "apt_install").bind(None, *packages)
            return (tag, options, packages)

        return SimpleNamespace(apt_install=apt_install, tag=tag)

    async def _lookup(self, name: str, *, create_if_missing: bool = False, **_: Any) -> Any:
        if create_if_missing:
            self._apps.add(name)
        if name not in self._apps:
            raise exception.NotFoundError(f"no app {name}")
        return SimpleNamespace(app_id=f"ap-{name}")

    async def _create(
        self,
        *args: str,
        name: str,
        tags: dict[str, str],
        env: dict[str, str],
        encrypted_ports: list[int],
        **_: Any,
    ) -> Any:
        self._fail("create")
        if name in self.boxes:
            raise exception.AlreadyExistsError(name)
        await self.add(name, Box(tags, env, port=encrypted_ports[0]))
        return self._sandbox(name)

    async def _from_name(self, app_name: str, name: str, **_: Any) -> Any:
        if name not in self.boxes:
            raise exception.NotFoundError(f"no running sandbox {name}")
        return self._sandbox(name)

    async def _list(self, *, tags: dict[str, str], **_: Any) -> AsyncIterator[Any]:
        for name, box in self.boxes.items():
            if {**box.metadata, **tags} == box.metadata:
                yield self._sandbox(name)

    def _sandbox(self, name: str) -> Any:
        box = self.boxes.get(name, Box({}, {}))

        async def poll() -> int | None:
            return None if name in self.boxes else 137

        async def terminate() -> None:
            await self.remove(name)

        async def get_tags() -> dict[str, str]:
            return box.metadata

        async def tunnels() -> dict[int, Any]:
            return {box.port: SimpleNamespace(url=f"{self.url}/port/{name}/{box.port}")}

        async def execute(*command: str) -> Any:
            if name not in self.boxes:
                raise exception.SandboxTerminatedError(name)
            code, out, err = await self.run(box, command)
            return SimpleNamespace(
                stdout=SimpleNamespace(read=_returning(out.decode())),
                stderr=SimpleNamespace(read=_returning(err.decode())),
                wait=_returning(code),
            )

        async def write_bytes(data: bytes, path: str) -> None:
            await self.write(Path(path), data)

        async def read_bytes(path: str) -> bytes:
            if not await asyncio.to_thread(Path(path).exists):
                raise exception.SandboxFilesystemNotFoundError(path)
            return await asyncio.to_thread(Path(path).read_bytes)

        filesystem: Any = import_module("modal.sandbox._filesystem")
        files = filesystem._SandboxFilesystem
        return SimpleNamespace(
            poll=self._method(modal.Sandbox, "poll", poll, None),
            terminate=self._method(modal.Sandbox, "terminate", terminate, None),
            get_tags=self._method(modal.Sandbox, "get_tags", get_tags, None),
            tunnels=self._method(modal.Sandbox, "tunnels", tunnels, None),
            exec=self._method(modal.Sandbox, "exec", execute, None),
            filesystem=SimpleNamespace(
                write_bytes=self._method(files, "write_bytes", write_bytes, None),
                read_bytes=self._method(files, "read_bytes", read_bytes, None),
            ),
        )


def _returning(value: object) -> SimpleNamespace:
    async def aio() -> object:
        return value

    return SimpleNamespace(aio=aio)
