"""The package installs beside what people have: FastAPI, uvicorn, pydantic 1 and 2, Jupyter."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.packaging.conftest import run, uv


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def resolve(wheel: Path, extras: str, *requirements: str) -> dict[str, str]:
    """Return the versions by name that installers would choose for the wheel and these requirements."""
    wanted = "\n".join([f"sandbox-agent-py{extras} @ {wheel.as_uri()}", *requirements])
    done = uv(["pip", "compile", "--no-header", "--no-annotate", "-"], cwd=wheel.parent, stdin=wanted)
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", done.stdout, re.MULTILINE))


@pytest.mark.parametrize(
    "requirements",
    [
        ("fastapi==0.115.0", "uvicorn==0.30.0"),
        ("fastapi==0.115.0", "uvicorn[standard]"),
        ("fastapi", "uvicorn==0.30.6"),
        ("fastapi[standard]",),
        ("fastapi==0.115.0", "pydantic<2", "uvicorn==0.34.0"),
        ("pydantic<2",),
        ("pydantic>=2",),
        ("jupyter",),
    ],
    ids=" ".join,
)
def test_the_sdk_resolves_beside(pypi: None, wheel: Path, requirements: tuple[str, ...]) -> None:
    chosen = resolve(wheel, "", *requirements)
    for requirement in requirements:
        if match := re.fullmatch(r"([\w-]+)==(\S+)", requirement):
            assert chosen[match[1]] == match[2]
    if not any("fastapi" in requirement for requirement in requirements):
        assert not chosen.keys() & {"starlette", "uvicorn", "uvloop", "httptools"}


@pytest.mark.parametrize(
    "requirements", [("fastapi",), ("pydantic<2",), ("pydantic>=2", "jupyter")], ids=" ".join
)
def test_the_server_resolves_beside(pypi: None, wheel: Path, requirements: tuple[str, ...]) -> None:
    chosen = resolve(wheel, "[server,cli,postgres,redis,encryption,socks]", *requirements)
    assert {"starlette", "uvicorn", "uvloop", "httptools", "websockets", "rich", "asyncpg"} <= chosen.keys()


def test_the_sdk_alone_brings_none_of_the_servers_dependencies(pypi: None, wheel: Path) -> None:
    direct = {"anyio", "click", "httpx2", "msgspec", "platformdirs"}
    servers = {
        "starlette",
        "uvicorn",
        "uvloop",
        "httptools",
        "websockets",
        "jinja2",
        "markdown-it-py",
        "rich",
    }
    chosen = resolve(wheel, "")
    assert direct <= chosen.keys()
    assert not chosen.keys() & {*servers, "rich"}


def test_the_extras_of_sandboxes_resolve_together(pypi: None, wheel: Path) -> None:
    chosen = resolve(wheel, "[server,sprites,kubernetes,microsandbox]")
    assert {"pyyaml", "websockets", "microsandbox", "uvicorn"} <= chosen.keys()
