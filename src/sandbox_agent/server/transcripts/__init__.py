"""Exports of a session: its events line by line, or a transcript as Markdown or HTML."""

from __future__ import annotations

from sandbox_agent.server.transcripts.export import FORMATS, ExportFormat, export

__all__ = ["FORMATS", "ExportFormat", "export"]
