"""``python -m benchmarks.unrecorded server …``: our server without its recorder, to tell what that costs."""

from __future__ import annotations

from typing import Any, cast

from sandbox_agent.cli.main import main
from sandbox_agent.server import app
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.children import Children

__all__: list[str] = []


def _bridge(spiller: Spiller, children: Children, *, request_timeout: float, recorder: object) -> Bridge:
    del recorder
    return Bridge(spiller, children, request_timeout=request_timeout)


if __name__ == "__main__":
    app.Bridge = cast("Any", _bridge)
    main()
