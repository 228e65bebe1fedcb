"""What a replay stands between in a prompt, and how it is found and taken out of one again."""

from __future__ import annotations

from typing import Final

OPENING: Final = "<conversation_history>"
CLOSING: Final = "</conversation_history>"
_INTRODUCTION: Final = (
    "This conversation began earlier, in a session that was lost. What was said and done so far, oldest "
    "first, is between the tags. Use it as context for the message that follows; don't repeat or answer it."
)
# How the TypeScript SDK's replays begin: it stores them as if the user had said them.
PEER_OPENING: Final = "Previous session history is replayed below as JSON-RPC envelopes."


def framed(body: str) -> str:
    """Return the text block that a replay is."""
    return f"{_INTRODUCTION}\n{OPENING}\n{body}\n{CLOSING}"


def is_replay_title(title: str) -> bool:
    """Whether an agent named its session after a replay that was in front of its first prompt."""
    return title.startswith(_INTRODUCTION[:30])


def without_replay(text: str, *, is_cut: bool = False) -> str:
    """Return what was said, without the replay in front of it.

    Args:
        text: what someone said.
        is_cut: whether it may begin in the middle of a replay.
    """
    end = text.find(CLOSING)
    if is_cut and end >= 0 and OPENING not in text[:end]:
        # The history that is read begins in the middle of it.
        text = text[end + len(CLOSING) :]
    while (start := text.find(OPENING)) >= 0:
        before = text[:start].removesuffix("\n")
        end = text.find(CLOSING, start)
        if end >= 0:
            text = before.removesuffix(_INTRODUCTION) + text[end + len(CLOSING) :]
        elif before.endswith(_INTRODUCTION):
            text = before.removesuffix(_INTRODUCTION)
        else:
            break  # someone speaks of it
    if text.startswith(PEER_OPENING):
        # Its lines are JSON; what the user said follows the last of them.
        lines = text.splitlines()
        text = "\n".join(line for line in lines[1:] if not line.startswith(("{", "[history truncated]")))
    return text
