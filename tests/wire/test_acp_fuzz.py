import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.wire.acp import (
    UnknownUpdate,
    parse_permission_request,
    parse_prompt_response,
    parse_update,
    read_update,
)

GOLDEN = Path(__file__).parent / "golden"
UPDATES: list[dict[str, Any]] = [
    json.loads(line)["update"] for line in (GOLDEN / "acp-updates.ndjson").read_text().splitlines()
]
SHAPES: dict[str, Any] = json.loads((GOLDEN / "acp-v1-session-updates.json").read_text())["SessionUpdate"]

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
blocks: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "diff", "content", "resource", "hologram"])},
    optional={"text": values, "content": values, "path": values, "data": values, "resource": values},
)


def of_kind(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    member = values | blocks | st.lists(blocks | values)
    names: list[str] = SHAPES[kind]["properties"]
    return st.fixed_dictionaries({"sessionUpdate": st.just(kind)}, optional=dict.fromkeys(names, member))


updates = st.sampled_from(sorted(SHAPES)).flatmap(of_kind)


@given(updates | st.dictionaries(st.text(), values))
def test_any_object_is_a_view_or_passes_through(update: dict[str, Any]) -> None:
    view = parse_update(update)
    assert view.session_update == (update.get("sessionUpdate") or "")
    if isinstance(view, UnknownUpdate):
        assert view.raw == update


@given(st.sampled_from(UPDATES), st.data(), values)
def test_a_real_update_with_one_broken_member_is_still_read(
    update: dict[str, Any], data: st.DataObject, value: Any
) -> None:
    name = data.draw(st.sampled_from(sorted(set(update) - {"sessionUpdate"})))
    view = parse_update(json.dumps(update | {name: value}).encode())
    assert view.session_update == update["sessionUpdate"]
    if name not in SHAPES[update["sessionUpdate"]]["required"]:
        assert not isinstance(view, UnknownUpdate)


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    parse_update(data)
    read_update(data)
    parse_permission_request(data)
    parse_prompt_response(data)


@given(st.dictionaries(st.sampled_from(["sessionId", "toolCall", "options", "stopReason", "usage"]), values))
def test_any_params_and_results_are_read_without_an_exception(value: dict[str, Any]) -> None:
    assert isinstance(parse_permission_request(value).options, list)
    assert isinstance(parse_prompt_response(value).stop_reason, str)
