"""Logging to stderr or to a file of limited size, as text or JSON lines, without secrets.

Each line has the ids of the request, connection and session that it belongs to. What clients and agents send
can't begin a line: in a text, control characters are escaped and tracebacks are indented.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.private import make_private_folder, open_private

Fields = Callable[[], Mapping[str, str]]

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
_REDACTED = "[redacted]"
# Only secrets of at least so many characters are redacted; the server's token has them.
MIN_SECRET = 8
# The size of a log file, and of the one before it.
LOG_BYTES = 10 * 1024 * 1024
# A longer id is cut.
MAX_FIELD = 256
_PLAIN = re.compile(r"[\w.:/+@~-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# The credentials that a URL may have, as they are or percent-encoded.
_IN_QUERY = re.compile(r"(?<=[?&])((?:ticket|access_token|token)=)[^&#\s'\"]+")


class _Redacting(logging.Formatter):
    """Replaces secrets in all output, tracebacks included."""

    def __init__(self, secrets: Sequence[str], fields: Fields) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._fields = fields
        # A shorter one would be found in words that are not it.
        self._secrets = tuple(secret for secret in secrets if len(secret) >= MIN_SECRET)

    def read_fields(self) -> dict[str, str]:
        """Return the ids of what is being handled, shortened."""
        return {name: self.redact(value)[:MAX_FIELD] for name, value in self._fields().items()}

    def redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _REDACTED)
        return _IN_QUERY.sub(rf"\1{_REDACTED}", text)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        fields = "".join(f" {name}={_quote(value)}" for name, value in self.read_fields().items())
        return _escape(super().formatMessage(record) + fields)

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")  # of a traceback
        return self.redact("\n    ".join(map(_escape, lines)))


class _Json(_Redacting):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.read_fields(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        line = json.dumps({key: self.redact(value) for key, value in entry.items()}, ensure_ascii=False)
        # JSON allows these in a string, but some readers end a line at them.
        return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _quote(value: str) -> str:
    """Return an id as it is, or in quotes if it could be read as several."""
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


class _LogFile(RotatingFileHandler):
    """A file of limited size, and the one before it. What this process writes to stderr follows it."""

    def __init__(self, path: Path) -> None:
        make_private_folder(path.absolute().parent)
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="replace")

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", errors="replace", opener=open_private)

    def doRollover(self) -> None:  # noqa: N802 - the name in the standard library
        outputs = [number for number in (1, 2) if _is_file(number, self.baseFilename)]
        super().doRollover()
        if self.stream is not None:
            for number in outputs:
                os.dup2(self.stream.fileno(), number)


def _is_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), Path(path).stat())
    except OSError:  # closed, or deleted
        return False


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def configure_logging(
    level: str,
    log_format: str,
    *,
    secrets: Sequence[str] = (),
    file: Path | None = None,
    fields: Fields = dict[str, str],
) -> None:
    """Log to stderr, or to a file.

    Args:
        level: One of ``LOG_LEVELS``.
        log_format: One of ``LOG_FORMATS``.
        secrets: Strings to redact, if they have MIN_SECRET characters.
        file: The file. When it has LOG_BYTES, it is renamed, and replaces the one that was renamed before.
        fields: Returns the ids that each line gets.

    Raises:
        InvalidRequestError: The file can't be opened.
    """
    try:
        handler = logging.StreamHandler(sys.stderr) if file is None else _LogFile(file)
    except OSError as error:
        raise InvalidRequestError(f"the log file '{file}' can't be opened: {error.strerror}") from error
    handler.setFormatter(_Json(secrets, fields) if log_format == "json" else _Redacting(secrets, fields))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
