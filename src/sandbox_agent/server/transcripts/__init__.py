"""A session's events for readers: one line per event, Markdown, or a page of HTML."""

from __future__ import annotations

from sandbox_agent.server.transcripts.export import FORMATS, ExportFormat, export

__all__ = ["FORMATS", "ExportFormat", "export"]
