"""Strict type checkers accept programs that use the package, and find their typos."""

from __future__ import annotations

import pytest

from tests.type_checkers import samples
from tests.type_checkers.checkers import CHECKERS, Finding, check, expected

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

SAMPLES = {name.lower(): code for name, code in vars(samples).items() if name.isupper()}


@pytest.fixture(scope="module", params=CHECKERS)
def findings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    """What a checker says about all samples."""
    folder = tmp_path_factory.mktemp("samples")
    for name, code in SAMPLES.items():
        (folder / f"{name}.py").write_text(code)
    return check(request.param, folder)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_checker_finds_the_errors_of_a_program_and_no_others(findings: list[Finding], name: str) -> None:
    found = [finding for finding in findings if finding.file == f"{name}.py"]
    assert sorted({finding.line for finding in found}) == expected(SAMPLES[name]), found
