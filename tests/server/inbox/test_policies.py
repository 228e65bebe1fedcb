"""What a policy says: tables of requests and verdicts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.engine.permissions import verdict_outcome
from sandbox_agent.errors import InvalidRequestError, ModeNotSupportedError
from sandbox_agent.server.permissions.policies import (
    PERMISSION_MODES,
    Policy,
    absolute,
    asked_paths,
    check_policy,
    decide,
    expiry_of,
    glob_matches,
    policy_of,
)
from sandbox_agent.wire.sessions import CreateSessionRequest, PermissionRule

from .stored import OPTIONS, session_row


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/work/**", "/work", True),
        ("/work/**", "/work/a/b.py", True),
        ("/work/**", "/workshop/a", False),
        ("/work/*", "/work/a", True),
        ("/work/*", "/work/a/b", False),
        ("/work/**/*.py", "/work/a.py", True),
        ("/work/**/*.py", "/work/x/y/a.py", True),
        ("/work/**/*.py", "/work/x/y/a.pyc", False),
        ("**/.env", "/work/x/.env", True),
        ("**/.env", "/.env", True),
        ("**/.env", "/work/.envrc", False),
        ("src/**", "/work/src/a", True),
        ("src/**", "/other/src/a", False),
        ("/work/?.txt", "/work/a.txt", True),
        ("/work/?.txt", "/work/ab.txt", False),
        ("/work/[ab].txt", "/work/b.txt", True),
        ("/work", "/work", True),
        ("/work/", "/work", True),
        ("**", "/", True),
        ("/", "/", True),
        ("/*", "/", False),
        ("/Work/**", "/work/a", False),
    ],
)
def test_a_glob_matches_paths_segment_by_segment(pattern: str, path: str, matches: bool):
    assert glob_matches(pattern, path, "/work") is matches


def test_a_long_glob_takes_no_time_that_explodes():
    assert not glob_matches("/".join(["**", "a*a*a*a*a*b"] * 40), "/" + "/".join(["a" * 200] * 60), None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/work/../etc/passwd", "/etc/passwd"),
        ("/work/./a//b", "/work/a/b"),
        ("a/../../x", "/x"),
        ("a", "/work/a"),
        ("//etc/passwd", "/etc/passwd"),
        ("/../..", "/"),
        ("", "/work"),
    ],
)
def test_a_path_is_made_absolute_before_it_is_compared(path: str, expected: str):
    assert absolute(path, "/work") == expected


@given(st.text(alphabet="abc./ ", max_size=30))
def test_no_path_keeps_a_step_up(path: str):
    assert ".." not in absolute(path, "/work").split("/")


def rule(reply: Any, kind: str | None = None, path: str | None = None) -> PermissionRule:
    return PermissionRule(reply=reply, kind=kind, path=path)


@pytest.mark.parametrize(
    ("mode", "rules", "kind", "paths", "verdict"),
    [
        ("", [], "edit", [], "ask"),
        ("allow", [], "edit", [], "allow"),
        ("bypass", [], "execute", [], "allow"),
        ("reject", [], None, [], "reject"),
        ("acceptEdits", [], "edit", [], "allow"),
        ("acceptEdits", [], "execute", [], "ask"),
        ("accept_edits", [], "edit", [], "allow"),
        ("default", [], "edit", [], "ask"),
        ("plan", [], "edit", [], "ask"),
        ("read_only", [], "edit", [], "reject"),
        ("read_only", [], "delete", [], "reject"),
        ("read_only", [], "move", [], "reject"),
        ("read_only", [], "execute", [], "reject"),
        ("read_only", [], "read", [], "ask"),
        ("read_only", [rule("allow", "edit", "/work/**")], "edit", ["/work/a"], "allow"),
        ("ask", [rule("allow", "read")], "read", [], "allow"),
        ("ask", [rule("allow", "read")], "edit", [], "ask"),
        ("ask", [rule("allow", "other")], None, [], "allow"),
        # the first that matches counts
        ("ask", [rule("reject", "edit"), rule("allow", "edit")], "edit", [], "reject"),
        ("allow", [rule("ask", "execute")], "execute", [], "ask"),
        # all paths must match what allows, any may match what rejects
        ("ask", [rule("allow", path="/work/**")], "edit", ["/work/a", "/work/b"], "allow"),
        ("ask", [rule("allow", path="/work/**")], "edit", ["/work/a", "/etc/passwd"], "ask"),
        ("allow", [rule("reject", path="/etc/**")], "edit", ["/work/a", "/etc/passwd"], "reject"),
        ("allow", [rule("ask", path="/work/**")], "edit", ["/work/a", "/etc/x"], "allow"),
        # a path can't climb out, nor into what is allowed
        ("ask", [rule("allow", path="/work/**")], "edit", ["/work/../etc/passwd"], "ask"),
        ("allow", [rule("reject", path="/etc/**")], "edit", ["/work/../etc/passwd"], "reject"),
        # no path is no match
        ("ask", [rule("allow", path="/work/**")], "edit", [], "ask"),
        ("ask", [rule("allow", path="**")], "edit", [], "ask"),
        ("ask", [rule("allow", "edit", "src/**")], "edit", ["src/a.py"], "allow"),
        ("ask", [rule("allow", "edit", "src/**")], "delete", ["src/a.py"], "ask"),
    ],
)
def test_a_policy_decides(mode: str, rules: list[PermissionRule], kind: str, paths: list[str], verdict: str):
    policy = Policy(PERMISSION_MODES.get(mode, "ask"), rules, "/work")
    assert decide(policy, kind, paths) == verdict


def test_the_paths_of_a_request_are_those_of_its_locations_diffs_and_input():
    metadata = {"paths": ["/a"], "raw_input": {"file_path": "/b", "path": 3, "paths": ["/c", None]}}
    call = {
        "locations": [{"path": "/d"}, None],
        "content": [{"type": "diff", "path": "/e"}, {"type": "content"}, 7],
        "rawInput": {"destination": "/f"},
    }
    assert asked_paths(metadata, call) == ["/a", "/d", "/e", "/b", "/c", "/f"]
    assert asked_paths({"paths": "x", "raw_input": [1]}, None) == ["x"]


@pytest.mark.parametrize(
    ("kinds", "verdict", "option"),
    [
        (["allow_once", "allow_always", "reject_once"], "allow", "allow_once"),
        (["allow_always", "reject_once"], "allow", "allow_always"),
        (["allow_once", "reject_always"], "reject", "reject_always"),
        (["allow_once"], "reject", None),
    ],
)
def test_a_verdict_chooses_an_option(kinds: list[str], verdict: Any, option: str | None):
    options = [{"optionId": kind, "kind": kind} for kind in kinds]
    result = verdict_outcome("p", options, verdict)
    assert result is not None
    assert result["outcome"].get("optionId") == option
    assert result["outcome"]["outcome"] == ("selected" if option else "cancelled")


def test_people_are_asked_where_nothing_can_be_allowed():
    assert verdict_outcome("p", [{"optionId": "n", "kind": "reject_once"}], "allow") is None
    assert verdict_outcome("p", OPTIONS, "ask") is None


@pytest.mark.parametrize(
    "settings",
    [
        {"permission_rules": [rule("allow", "editing")]},
        {"permission_rules": [rule("allow", path="/work/../etc")]},
        {"permission_rules": [rule("allow", path="")]},
        {"permission_rules": [rule("allow", path="/" + "a" * 5000)]},
        {"permission_rules": [rule("allow")] * 1001},
        {"permission_timeout_seconds": 0.0},
        {"permission_timeout_seconds": -1.0},
        {"permission_timeout_seconds": float("inf")},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(settings: dict[str, Any]):
    with pytest.raises(InvalidRequestError):
        check_policy(CreateSessionRequest(agent="mock", **settings))


def test_an_unknown_permission_mode_is_refused_with_those_that_there_are():
    with pytest.raises(ModeNotSupportedError, match="bypass"):
        check_policy(CreateSessionRequest(agent="mock", permission_mode="whatever"))


def test_a_session_that_the_server_does_not_drive_asks():
    row = session_row(permission_mode="allow")
    assert policy_of(row).mode == "allow"
    row.settings = None
    assert policy_of(row) == Policy()
    row.settings = b'{"agent": 7}'
    assert policy_of(row) == Policy()


def test_a_request_expires_where_the_session_says_so():
    assert expiry_of(session_row(permission_timeout_seconds=1.5), 1000) == 2500
    assert expiry_of(session_row(permission_timeout_seconds=1e300), 1000) is None
    assert expiry_of(session_row(), 1000) is None
