"""Write the lockfiles of the agents: exact versions and hashes of all packages, dependencies included.

``scripts/lock_agents.py [ID]...`` writes ``ID.json`` (npm) or ``ID.txt`` (PyPI) for the versions in
``catalogue.toml``, into ``src/sandbox_agent/agents/install/locks``. npm and uv have to be on PATH. The files
have what Linux and macOS on x64 and arm64 need. Packages of a platform that the registry lacks are listed in
``missing``, with their versions: they are installed without a recorded hash.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from sandbox_agent.agents.catalogue import CATALOGUE, NpmPackages, PypiPackage

LOCKS = Path(__file__).parents[1] / "src/sandbox_agent/agents/install/locks"
SYSTEMS = {"linux": ("linux",), "darwin": ("darwin", "macos")}
MACHINES = {"x64": ("x64", "x86_64"), "arm64": ("arm64", "aarch64")}
PLATFORMS = [
    *(f"{system}-{machine}" for system in SYSTEMS for machine in MACHINES),
    *(f"linux-{machine}-musl" for machine in MACHINES),
]
# The members of a package that `npm ci` reads.
MEMBERS = (
    "name",
    "version",
    "resolved",
    "integrity",
    "optional",
    "hasInstallScript",
    "os",
    "cpu",
    "libc",
    "bin",
    "dependencies",
    "optionalDependencies",
    "peerDependencies",
    "peerDependenciesMeta",
)
# Wheels of other interpreters and systems are left out.
WHEEL = re.compile(
    r"-(py3|py2\.py3|cp3\d+)-(none|abi3|cp31[1-4])-(any|.*(linux|macosx).*(x86_64|aarch64|arm64|universal2))\.whl$"
)
OLD_WHEEL = re.compile(r"-cp3(9|10|[5-8])-cp")


def lock_npm(packages: NpmPackages) -> str:
    """Return the lockfile of npm packages, one line per package."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = {"private": True, "dependencies": packages.packages}
        Path(folder, "package.json").write_text(json.dumps(manifest))
        command = ["npm", "install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([*command, "--loglevel=error"], cwd=folder, check=True)
        found: dict[str, Any] = json.loads(Path(folder, "package-lock.json").read_text())["packages"]
    kept = {path: entry for path, entry in found.items() if not entry.get("optional") or _is_wanted(entry)}
    names = {path.rpartition("node_modules/")[2] for path in kept}
    present = {path.rpartition("node_modules/")[2] for path in found}
    absent = {
        name: version
        for entry in found.values()
        for name, version in entry.get("optionalDependencies", {}).items()
        if name not in present
    }
    lines: list[str] = []
    for path, entry in kept.items():
        if path:
            name = entry.get("name") or path.rpartition("node_modules/")[2]
            file = f"{name.rpartition('/')[2]}-{entry['version']}.tgz"
            entry["resolved"] = f"https://registry.npmjs.org/{name}/-/{file}"
            if "integrity" not in entry:
                raise SystemExit(f"{path} has no hash")
        optional = {name: v for name, v in entry.pop("optionalDependencies", {}).items() if name in names}
        if optional:
            entry["optionalDependencies"] = optional
        line = {member: entry[member] for member in MEMBERS if member in entry}
        lines.append(f"{json.dumps(path)}:{json.dumps(line, separators=(',', ':'))}")
    missing = {
        platform: {name: absent[name] for name in sorted(absent) if _is_for(name, platform)}
        for platform in PLATFORMS
    }
    return f'{{"missing":{json.dumps(missing)},"packages":{{\n' + ",\n".join(lines) + "\n}}\n"


def _is_wanted(entry: dict[str, Any]) -> bool:
    """Return whether an optional package is for one of our platforms."""
    return _allows(entry.get("os"), set(SYSTEMS)) and _allows(entry.get("cpu"), set(MACHINES))


def _allows(values: list[str] | None, wanted: set[str]) -> bool:
    named = {value for value in values or () if not value.startswith("!")}
    return not named or bool(named & wanted)


def _is_for(name: str, platform: str) -> bool:
    """Return whether the name of a package that the registry lacks is that of a platform's program."""
    system, machine, *libc = platform.split("-")
    if "musl" in name and not libc:
        return False
    return any(word in name for word in SYSTEMS[system]) and any(word in name for word in MACHINES[machine])


def lock_pypi(package: PypiPackage) -> str:
    """Return the requirements of a PyPI package, with hashes."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.in")
        also = [f"{name}=={version}\n" for name, version in package.also.items()]
        wanted.write_text("".join([f"{package.requirement}=={package.version}\n", *also]))
        command = [
            "uv",
            "pip",
            "compile",
            "-q",
            "--universal",
            "--python-version=3.11",
            "--format=pylock.toml",
        ]
        run = subprocess.run([*command, str(wanted)], check=True, capture_output=True, text=True)
    lines: list[str] = []
    for entry in tomllib.loads(run.stdout)["packages"]:
        files = [wheel for wheel in entry.get("wheels", ()) if _is_ours(wheel["url"])] or [entry["sdist"]]
        marker = f" ; {entry['marker']}" if "marker" in entry else ""
        hashes = " ".join(f"--hash=sha256:{file['hashes']['sha256']}" for file in files)
        lines.append(f"{entry['name']}=={entry['version']}{marker} {hashes}\n")
    return "".join(lines)


def _is_ours(url: str) -> bool:
    return bool(WHEEL.search(url)) and not OLD_WHEEL.search(url)


def main() -> None:
    """Write the lockfiles of the agents on the command line, or of all."""
    LOCKS.mkdir(exist_ok=True)
    for agent in CATALOGUE.values():
        if sys.argv[1:] and agent.id not in sys.argv[1:]:
            continue
        if agent.npm is not None:
            (LOCKS / f"{agent.id}.json").write_text(lock_npm(agent.npm))
        elif agent.pypi is not None:
            (LOCKS / f"{agent.id}.txt").write_text(lock_pypi(agent.pypi))


if __name__ == "__main__":
    main()
