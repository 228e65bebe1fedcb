"""The path under which the server is mounted in another application, or served by a proxy."""

from __future__ import annotations

from urllib.parse import unquote

from starlette.types import Scope


def without_root_path(scope: Scope) -> Scope:
    """Return the scope of a request with its path relative to where the server is mounted.

    A proxy may have removed the root path already; then the path is not changed. ``root_path`` stays.
    """
    root: str = scope.get("root_path", "").rstrip("/")
    path: str = scope["path"]
    if not root or not (path == root or path.startswith(f"{root}/")):
        return scope
    changed = {**scope, "path": path[len(root) :] or "/"}
    raw: bytes = scope.get("raw_path") or b""
    segments = raw.split(b"/", root.count("/") + 1)
    if unquote(b"/".join(segments[: root.count("/") + 1]).decode("latin-1")) == root:
        changed["raw_path"] = b"/" + b"/".join(segments[root.count("/") + 1 :])
    else:
        changed["raw_path"] = b""  # the decoded path is used
    return changed


def root_path_of(scope: Scope) -> str:
    """Return where the server is mounted, such as "/agents"; empty if it is not."""
    root: str = scope.get("root_path", "")
    return root.rstrip("/")
