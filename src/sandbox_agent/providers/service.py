"""What a sandbox service answers when a call fails, and what to do then."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.extras import require_extra

_T = TypeVar("_T")

_LOADED: set[tuple[str, str | None]] = set()

# The service may have done what it was asked: only calls that may be repeated are.
_UNCERTAIN = (500, 502, 503, 504, 520, 522, 524, None)
_GONE = (404, 410)
_TRIES = 5
# Seconds before the first repetition without a Retry-After; each further one waits twice as long.
_FIRST_WAIT = 0.5
# Seconds. A service that wants a longer pause has its error raised at once.
LONGEST_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class ServiceFailure:
    """What an error of a service's SDK says.

    Attributes:
        message: The service's own words.
        status: The HTTP status, None if the service could not be reached, or 0 for another failure.
        retry_after: Seconds that the service asks to wait, or None.
        is_about_file: Whether a file of the sandbox is missing, and not the sandbox.
    """

    message: str
    status: int | None
    retry_after: float | None = None
    is_about_file: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether the service has not done what it was asked for now, so that any call can be repeated.

        A gateway also answers 503 when it loses the connection to a service that has done it, but then it
        does not say when to come back.
        """
        return self.status == 429 or (self.status == 503 and self.retry_after is not None)


@dataclass(frozen=True, slots=True)
class Service:
    """A service that runs sandboxes.

    Attributes:
        title: Its name for users.
        provider: The name of the provider, which is the function that makes it and the extra that it needs.
        variable: The environment variable with its key.
        argument: How to pass the key instead, such as ``client={'api_key': ...}``.
        module: The module of its SDK, or None if it needs none.
        needs: More modules that the extra brings.
        client: What of it is used first: some SDKs import themselves only then.
        permission: What helps if the key does not allow a call.
        tries: How often a call is tried; 1 if the SDK repeats calls itself.
    """

    title: str
    provider: str
    variable: str
    argument: str
    module: str | None = None
    needs: tuple[str, ...] = ()
    client: str | None = None
    permission: str = "Use a key of the team that owns the sandbox and its template."
    tries: int = _TRIES

    def check_installed(self) -> None:
        """Check that the SDK is installed.

        Raises:
            MissingExtraError: It is not.
        """
        modules = self.needs if self.module is None else (self.module, *self.needs)
        require_extra(f"{self.provider}()", self.provider, *modules)

    async def load(self) -> None:
        """Import the SDK, which may take a second, in a thread."""
        if not self._is_loaded():
            await asyncio.to_thread(self._import)

    def _is_loaded(self) -> bool:
        return self.module is None or (self.module, self.client) in _LOADED

    def _import(self) -> None:
        assert self.module is not None
        module = import_module(self.module)
        if self.client is not None:
            getattr(module, self.client)
        _LOADED.add((self.module, self.client))

    async def call(
        self,
        sandbox_id: str | None,
        work: Callable[[], Awaitable[_T]],
        describe: Callable[[Exception], ServiceFailure | None],
        *,
        is_repeatable: bool = True,
        limit: float | None = None,
    ) -> _T:
        """Call the service, again while it refuses for now, and raise its errors as those of this package.

        Args:
            sandbox_id: The sandbox, or None if there is none yet.
            work: Makes the call.
            describe: Says what an error of the SDK means; None for an error that is not the service's.
            is_repeatable: Whether the call may be repeated if it may have had its effect.
            limit: Seconds for each try, or None.

        Raises:
            SandboxDestroyedError: The sandbox no longer exists.
            SandboxAgentError: The call failed.
        """
        tried = 0
        while True:
            tried += 1
            try:
                return await limited(work, limit)
            except SandboxAgentError:
                raise
            except TimeoutError as error:
                raise SandboxAgentError(
                    f"{self.title} did not answer in time for {self._shown(sandbox_id)}"
                ) from error
            except Exception as error:
                failure = describe(error)
                if failure is None:
                    raise
                wait = failure.retry_after
                if wait is None:
                    wait = _FIRST_WAIT * 2 ** (tried - 1)
                may_repeat = failure.is_refusal or (is_repeatable and failure.status in _UNCERTAIN)
                if not may_repeat or tried >= self.tries or wait > LONGEST_WAIT:
                    raise self._error(failure, sandbox_id) from error
            await asyncio.sleep(wait)

    def _shown(self, sandbox_id: str | None) -> str:
        return "this request" if sandbox_id is None else f"'{self.provider}/{sandbox_id}'"

    def _error(self, failure: ServiceFailure, sandbox_id: str | None) -> SandboxAgentError:
        text = self._text(failure, sandbox_id)
        if not failure.is_about_file and failure.status in _GONE and sandbox_id is not None:
            return SandboxDestroyedError(sandbox_id, self.provider)
        return SandboxAgentError(text, status=failure.status or None)

    def _text(self, failure: ServiceFailure, sandbox_id: str | None) -> str:
        shown = self._shown(sandbox_id)
        if failure.is_about_file:
            return (
                f"sandbox {shown} lacks a file: {failure.message}. Use a sandbox that {self.provider}() has "
                "created."
            )
        match failure.status:
            case 401:
                return (
                    f"{self.title} refused the credentials: {failure.message}. Set the variable "
                    f"{self.variable} to a valid key, or pass {self.argument}."
                )
            case 403:
                return (
                    f"{self.title} does not allow this with the key of {self.variable}: {failure.message}. "
                    f"{self.permission}"
                )
            case 429 | 503:
                asked = f" It asks to wait {failure.retry_after:g} s." if failure.retry_after else ""
                return (
                    f"{self.title} still refuses requests for now after several tries: {failure.message}."
                    f"{asked} Wait, or use fewer sandboxes at a time."
                )
            case None:
                return f"{self.title} could not be reached for {shown}: {failure.message}"
            case status:
                said = f" (status {status})" if status else ""
                return f"{self.title} failed for {shown}{said}: {failure.message}"


def was_refused(error: BaseException) -> bool:
    """Return whether the service has not done what it was asked, so that nothing is left of it.

    A conflict may be with what an earlier try has left.
    """
    status = error.status if isinstance(error, SandboxAgentError) else None
    return status is not None and 400 <= status < 500 and status not in (408, 409)


async def limited(work: Callable[[], Awaitable[_T]], seconds: float | None) -> _T:
    """Call an SDK with a limit of time, which ends it also if the SDK turns cancellations into errors.

    Raises:
        TimeoutError: The time is over.
    """
    async with asyncio.timeout(seconds):
        with _cancelable():
            return await work()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which may have a date (RFC 9110, 10.2.3)."""
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), None)
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


@contextlib.contextmanager
def _cancelable() -> Generator[None]:
    """Raise a cancellation that an SDK has turned into an error of a request."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        # A timeout is a cancellation, too, but not that of the caller.
        while cause is not None and not isinstance(cause, asyncio.CancelledError | TimeoutError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, asyncio.CancelledError):
            raise cause from error
        raise
