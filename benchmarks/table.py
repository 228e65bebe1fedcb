"""The tables of a run: a row for each work, shown as it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["DriverRow", "Row", "as_markdown", "show", "show_drivers"]


class Row(NamedTuple):
    """One line of the table; ``passed`` is whether the bar is met."""

    work: str
    ours: str
    peer: str
    ratio: str
    bar: str
    passed: bool


class DriverRow(NamedTuple):
    """One line of the drivers' table, side by side; "" where a driver has no such thing."""

    work: str
    memory: str
    sqlite: str
    postgres: str
    redis: str
    bar: str
    passed: bool


def show(row: Row) -> Row:
    """Print a row as it is done."""
    print(
        f"{row.work:58} {row.ours:>22} {row.peer:>22} {row.ratio:>8}  {row.bar:28} {_verdict(row.passed)}",
        flush=True,
    )
    return row


def show_drivers(row: DriverRow) -> DriverRow:
    """Print a row as it is done."""
    figures = " ".join(f"{figure:>20}" for figure in row[1:5])
    print(f"{row.work:46} {figures}  {row.bar:28} {_verdict(row.passed)}", flush=True)
    return row


def as_markdown(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    """Return a table's lines; the last column says whether the bar is met."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        *cells, passed = row
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if passed else 'no'} |")
    return lines


def _verdict(passed: bool) -> str:
    return "ok" if passed else "MISSED"
