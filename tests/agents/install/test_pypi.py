"""Agents from PyPI: a real venv and a real pip, which finds the packages in a folder."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.agents.info import agent_info
from sandbox_agent.agents.install.installed import read_installation
from sandbox_agent.agents.install.installer import Versions, install
from sandbox_agent.agents.install.pypi import read_requirements
from sandbox_agent.errors import InstallFailedError
from tests.agents.conftest import Machine

pytestmark = pytest.mark.anyio

DEEPAGENTS = CATALOGUE["deepagents"].pypi
assert DEEPAGENTS is not None
ALSO = DEEPAGENTS.also
AGENT = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    result = {"protocolVersion": 1}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"""


@pytest.fixture(autouse=True)
def packages(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the packages that pip finds."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    # What a user may have set for other things.
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))
    return folder


def add(folder: Path, version: str, program: str = AGENT) -> None:
    add_wheel(folder, "deepagents_acp", version, program)
    for name, pin in ALSO.items():
        add_wheel(folder, name.replace("-", "_"), pin, "")


def add_wheel(folder: Path, name: str, version: str, program: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__main__.py", program)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def found(folder: str, pattern: str) -> list[Path]:
    return list(Path(folder).glob(pattern))


@pytest.mark.soak
async def test_a_package_gets_an_environment_of_its_own(packages: Path) -> None:
    add(packages, "0.0.99")
    await install("deepagents", versions=Versions(acp="0.0.99"))
    info = agent_info("deepagents")
    assert (info.installed, info.version, info.package) == (True, "0.0.99", "deepagents-acp")
    installation = read_installation("deepagents")
    assert installation is not None
    assert (installation.source, installation.packages) == ("pypi", {"deepagents-acp": "0.0.99"})
    assert found(installation.folder, "venv/lib/*/site-packages/deepagents_acp/__main__.py")
    assert found(installation.folder, "venv/lib/*/site-packages/langchain_openai/__main__.py")


@pytest.mark.soak
async def test_pips_reason_is_in_the_error(packages: Path) -> None:
    with pytest.raises(InstallFailedError, match=r"pip install ended with 1: .*deepagents-acp==0\.0\.98"):
        await install("deepagents", versions=Versions(acp="0.0.98"))
    assert not agent_info("deepagents").installed


@pytest.mark.soak
async def test_a_package_with_another_hash_than_the_recorded_is_refused(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(packages, "0.0.13")
    # Of the requirements, only this one is in the folder.
    (line,) = [
        line for line in read_requirements("deepagents").splitlines() if line.startswith("deepagents-acp=")
    ]

    def only_this(_: str) -> str:
        return f"{line}\n"

    monkeypatch.setattr("sandbox_agent.agents.install.pypi.read_requirements", only_this)
    with pytest.raises(InstallFailedError, match="DO NOT MATCH THE HASHES"):
        await install("deepagents")
