"""Makes a wheel of this package as it is installed, for places that cannot get it from a package index."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Awaitable, Callable

from sandbox_agent.providers.server_process import PACKAGE_ROOT
from sandbox_agent.providers.start_script import NEEDS_WHEEL

_DISTRIBUTION = "sandbox-agent-py"


def make_wheel() -> tuple[str, bytes]:
    """Return the file name of the wheel and its content. The same package has the same wheel."""
    distribution = importlib.metadata.distribution(_DISTRIBUTION)
    stem = f"{_DISTRIBUTION.replace('-', '_')}-{distribution.version}"
    package = PACKAGE_ROOT / "sandbox_agent"
    files = {
        path.relative_to(PACKAGE_ROOT).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"{stem}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        if (text := distribution.read_text(name)) is not None:
            files[f"{info}/{name}"] = text.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: sandbox-agent\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return f"{stem}-py3-none-any.whl", buffer.getvalue()


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


async def run_with_wheel(
    run: Callable[[], Awaitable[tuple[int, str]]], put: Callable[[str, bytes], Awaitable[None]]
) -> tuple[int, str]:
    """Run the start script, and again with the wheel if the package index does not have this package.

    Args:
        run: Runs the script in a sandbox and returns its exit code and output.
        put: Writes a file to the script's folder.
    """
    code, output = await run()
    if code == NEEDS_WHEEL:
        await put(*await asyncio.to_thread(make_wheel))
        code, output = await run()
    return code, output
