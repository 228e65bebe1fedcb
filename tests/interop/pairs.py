"""Which SDK is tried on which server."""

from __future__ import annotations

import pytest

from tests.interop.conftest import OURS, PUBLISHED
from tests.interop.peers import PYTHON, TYPESCRIPT

__all__ = ["BOTH_SDKS", "EVERY_PAIR"]

# The published SDK on the published server says what a scenario may expect; that is tried less often.
EVERY_PAIR = pytest.mark.parametrize(
    ("sdk", "server"),
    [
        pytest.param(TYPESCRIPT, OURS, id="theirs-on-ours"),
        pytest.param(PYTHON, PUBLISHED, id="ours-on-theirs"),
        pytest.param(PYTHON, OURS, id="ours-on-ours"),
        pytest.param(TYPESCRIPT, PUBLISHED, id="theirs-on-theirs", marks=pytest.mark.soak),
    ],
    indirect=["server"],
)
# Both SDKs on our server.
BOTH_SDKS = pytest.mark.parametrize("sdk", [TYPESCRIPT, PYTHON])
