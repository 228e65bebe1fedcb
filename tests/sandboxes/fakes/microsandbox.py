"""microsandbox at the boundary of its module. Its microVMs are processes of this machine."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import microsandbox
from microsandbox import SandboxStatus, errors
from starlette.routing import BaseRoute

from tests.sandboxes.fakes.service import Box, FakeService


def _options_of_create() -> set[str]:
    """Return the arguments that the real call has. The call itself does not show them."""
    stub = Path(microsandbox.__file__).with_name("_microsandbox.pyi").read_text()
    return next(
        {argument.arg for argument in node.args.kwonlyargs}
        for node in ast.walk(ast.parse(stub))
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "create"
    )


class FakeMicrosandbox(FakeService):
    """What takes the place of ``microsandbox.Sandbox``. A sandbox's port is this machine's."""

    credentials: ClassVar[tuple[str, str]] = ("x-unused", "")

    def routes(self) -> Sequence[BaseRoute]:
        return []  # there is no service

    def native_error(self, status: int) -> Exception:
        return errors.InvalidConfigError(f"made to fail with {status}")

    def _fail(self, name: str) -> None:
        failure = self.failures.get(name)
        if failure is not None and failure.times > 0:
            failure.times -= 1
            raise self.native_error(failure.status)

    def _record(self, call: str, name: str, **options: Any) -> None:
        self.requests.append((call, name, options))

    async def create(self, name: str, **options: Any) -> Any:
        assert set(options) <= _options_of_create()
        self._record("create", name, **options)
        self._fail("create")
        [binding] = options["ports"]
        await self.add(name, Box(dict(options["labels"]), {}, port=binding.guest_port))
        return self._running(name)

    async def get(self, name: str) -> Any:
        if name not in self.boxes:
            raise errors.SandboxNotFoundError(f"sandbox not found: {name}")
        return self._handle(name)

    async def list_with(self, *, labels: Mapping[str, str], cursor: str | None) -> Any:
        """One in a page."""
        names = [name for name, box in self.boxes.items() if labels.items() <= box.metadata.items()]
        start = int(cursor or 0)
        more = str(start + 1) if start + 1 < len(names) else None
        handles = [self._handle(name) for name in names[start : start + 1]]
        return SimpleNamespace(sandboxes=handles, next_cursor=more)

    def _handle(self, name: str) -> Any:
        box = self.boxes[name]

        async def connect() -> Any:
            if box.is_paused:
                raise errors.SandboxNotRunningError(name)
            return self._running(name)

        async def start(*, detached: bool) -> Any:
            self._record("start", name, detached=detached)
            box.is_paused = False
            return self._running(name)

        async def stop() -> None:
            self._record("stop", name)
            box.is_paused = True
            await asyncio.to_thread(self.kill_server)

        async def destroy(*, force: bool) -> None:
            self._record("destroy", name, force=force)
            await self.remove(name)

        async def touch() -> None:
            self._record("touch", name)
            self._fail("timeout")

        return SimpleNamespace(
            name=name,
            status=SandboxStatus.STOPPED if box.is_paused else SandboxStatus.RUNNING,
            created_at=1_700_000_000_000.0,
            config=lambda: {
                "image": {"Oci": {"size": None, "reference": "image"}},
                "network": {"ports": [{"guest_port": box.port, "host_port": box.port}]},
            },
            connect=connect,
            start=start,
            stop=stop,
            destroy=destroy,
            touch=touch,
        )

    def _running(self, name: str) -> Any:
        async def detach() -> None:
            pass

        async def execute(command: str, arguments: list[str]) -> Any:
            if name not in self.boxes:
                raise errors.SandboxNotFoundError(name)
            code, out, err = await self.run(self.boxes[name], [command, *arguments])
            return SimpleNamespace(exit_code=code, stdout_bytes=out, stderr_bytes=err)

        async def write(path: str, data: bytes) -> None:
            if not Path(path).parent.is_dir():
                raise errors.PathNotFoundError(path)
            await self.write(Path(path), data)

        async def read(path: str) -> bytes:
            if not await asyncio.to_thread(Path(path).exists):
                raise errors.PathNotFoundError(path)
            return await asyncio.to_thread(Path(path).read_bytes)

        return SimpleNamespace(detach=detach, exec=execute, fs=SimpleNamespace(write=write, read=read))
