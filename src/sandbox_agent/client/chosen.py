"""The chosen settings in a session's record: ``session_init._meta["sandbox-agent"]``.

The rest of ``session_init`` is the params of session/new. The TypeScript SDK sends all of it to the agent;
this SDK leaves its own member out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.settings import ChosenSettings
from sandbox_agent.wire.members import members
from sandbox_agent.wire.records import SessionRecord

_META = "_meta"
_MEMBER = "sandbox-agent"
_VERSION = 1


def has_chosen(record: SessionRecord) -> bool:
    """Return whether the record has chosen settings; records of older versions and other SDKs do not."""
    return _read(record) is not None


def chosen_settings(record: SessionRecord) -> ChosenSettings:
    """Return the chosen settings; if the record has none, those that the agent reported last."""
    chosen = _read(record)
    if chosen is not None:
        return chosen
    return ChosenSettings(
        mode=config.setting(record, "mode"),
        model=config.setting(record, "model"),
        thought_level=config.setting(record, "thought_level"),
    )


def _read(record: SessionRecord) -> ChosenSettings | None:
    stored = members(members((record.session_init or {}).get(_META)).get(_MEMBER))
    if "chosen" not in stored:
        return None
    try:
        return msgspec.convert(stored["chosen"], ChosenSettings)
    except msgspec.ValidationError:
        return None


def init_with_chosen(init: Mapping[str, Any], chosen: ChosenSettings) -> dict[str, Any]:
    """Return ``session_init`` with the chosen settings in it."""
    meta = members(init.get(_META))
    stored = {**members(meta.get(_MEMBER)), "version": _VERSION, "chosen": msgspec.to_builtins(chosen)}
    return {**init, _META: {**meta, _MEMBER: stored}}


def init_for_agent(init: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of session/new: ``session_init`` without this SDK's own member."""
    params = dict(init)
    meta = {name: value for name, value in members(init.get(_META)).items() if name != _MEMBER}
    if meta:
        params[_META] = meta
    else:
        params.pop(_META, None)
    return params
