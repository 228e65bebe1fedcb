import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.engine.project.content import unified_diff

LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\u2028\n", "\n"]), max_size=12)


def apply(old: str, diff: str) -> str:
    """Apply hunks as patch(1) does, to texts that end with a newline: what they keep or remove is there."""
    before = old.split("\n")
    result: list[str] = []
    position = 0
    for line in diff.split("\n")[:-1]:
        if line.startswith("@@"):
            start, _, count = line.split()[1][1:].partition(",")
            first = int(start) - (count != "0")
            result += before[position:first]
            position = first
            continue
        if line[0] in " -":
            assert before[position] == line[1:]
            position += 1
        if line[0] in " +":
            result.append(line[1:])
    return "\n".join([*result, *before[position:]])


@pytest.mark.parametrize(
    ("old", "new", "diff"),
    [
        (None, "a\n", "@@ -0,0 +1 @@\n+a\n"),
        ("a\n", "", "@@ -1 +0,0 @@\n-a\n"),
        ("a\n", "a\n", ""),
        (None, "", ""),
        ("a", "b", "@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n\\ No newline at end of file\n"),
        ("a\fb\n", "a\fc\n", "@@ -1 +1 @@\n-a\fb\n+a\fc\n"),
    ],
)
def test_a_change_is_told_in_hunks(old: str | None, new: str, diff: str):
    assert unified_diff(old, new) == diff


@given(LINES, LINES)
def test_the_hunks_turn_the_old_text_into_the_new(before: list[str], after: list[str]):
    old, new = "".join(before), "".join(after)
    assert apply(old, unified_diff(old, new)) == new


@pytest.mark.parametrize("place", [0, 1, 500, 1_998, 1_999])
def test_a_large_file_is_one_hunk_around_what_changed(place: int):
    before = [f"{number}\n" for number in range(2_000)]
    after = [*before[:place], "new\n", "newer\n", *before[place + 1 :]]
    old, new = "".join(before), "".join(after)
    diff = unified_diff(old, new)
    assert diff.count("@@ -") == 1
    assert diff.count("\n") <= 1 + 3 + 1 + 2 + 3
    assert apply(old, diff) == new


def test_a_large_file_that_did_not_change_has_no_hunk():
    text = "a\n" * 2_000
    assert unified_diff(text, text) == ""
