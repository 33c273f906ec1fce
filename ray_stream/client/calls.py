"""Blocking calls over the callback services: waiting, deadlines, and which failures are retried.

Owns: the one place where a client's thread waits for an answer, and the retry rule. Refuses: what
requests mean, and threads of its own.

A wait is a lock with a timeout, so Ctrl-C ends it at once. Whether an error may be retried is the
error's own attribute (`retriable`), never its text.
"""

import asyncio
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ray_stream.clock import Clock
from ray_stream.errors import (
    InvalidArgumentError,
    OutcomeUnknownError,
    RayStreamError,
    TimeoutExpiredError,
)
from ray_stream.rpc.services import Reply

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

TIMEOUT_MAX_S = 10.0 * 365 * 24 * 3600
_SLICE_MS = 200
"""No single wait is longer: the clock that counts is the caller's, not the lock's."""
_BACKOFF_MS = 50
_BACKOFF_MAX_MS = 1_000


class Deadline:
    """The moment at which a call gives up."""

    def __init__(self, clock: Clock, timeout_s: float | None) -> None:
        """Start counting.

        Args:
            clock: whose monotonic time counts.
            timeout_s: seconds from now, 0 or more; None: it never comes.

        Raises:
            InvalidArgumentError: not a number of seconds.
        """
        self._clock = clock
        self.timeout_s = TIMEOUT_MAX_S if timeout_s is None else check_timeout(timeout_s)
        self._at_ms = clock.monotonic_ms() + math.ceil(self.timeout_s * 1000)

    def left_ms(self) -> int:
        """Milliseconds that are left, never below 0."""
        return max(0, self._at_ms - self._clock.monotonic_ms())


def check_timeout(timeout_s: object) -> float:
    """The timeout in seconds, when it is one; else InvalidArgumentError."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise InvalidArgumentError(f"timeout={timeout_s!r}: a number of seconds is needed")
    if not 0 <= timeout_s <= TIMEOUT_MAX_S:
        raise InvalidArgumentError(
            f"timeout={timeout_s!r}: seconds from 0 to {TIMEOUT_MAX_S:.0f} are valid"
        )
    return float(timeout_s)


class Mailbox:
    """Where the answers to one thread's requests arrive, from whatever thread they come."""

    def __init__(self) -> None:
        self._answers: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self.alarm: Callable[[], None] | None = None
        """Called when something was put in: its owner waits somewhere else than in `take`."""

    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        return self._answers.empty()

    def reply_to(self, request_id: int) -> Reply[Any]:
        """What a request is given to be answered with."""
        put = self._answers.put

        def reply(answer: Any) -> None:  # noqa: ANN401 - the answer of any request
            put((request_id, answer))
            alarm = self.alarm
            if alarm is not None:
                alarm()

        return reply

    def take(self, wait_ms: int = 0) -> tuple[int, Any] | None:
        """The next (request id, answer); None when none came.

        Args:
            wait_ms: how long to wait for one; the wait may end earlier without an answer.
        """
        try:
            if wait_ms <= 0:
                return self._answers.get_nowait()
            warn_in_running_loop()
            return self._answers.get(timeout=min(wait_ms, _SLICE_MS) / 1000)
        except Empty:
            return None


def warn_in_running_loop() -> None:
    """Warn, once in a process, that the caller is about to stop its event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    _warn_once()


@lru_cache(maxsize=1)
def _warn_once() -> None:
    warnings.warn(
        "a blocking ray_stream call inside a running event loop stops that loop until it returns; "
        "use asyncio.to_thread, or a thread of your own",
        RuntimeWarning,
        stacklevel=5,
    )


def call(
    method: Callable[[RequestT, Reply[AnswerT]], None],
    request: RequestT,
    *,
    deadline: Deadline,
    what: str,
    attempt_ms: int | None = None,
) -> AnswerT:
    """Ask until there is an answer; every request that comes through here may be repeated.

    Args:
        method: a method of a service.
        request: what to ask; sent again when the error says that it may succeed later.
        deadline: when to give up.
        what: what is being done, for the message: "creating topic 'flights'".
        attempt_ms: how long one attempt waits for its answer; None: as long as the deadline.

    Raises:
        TimeoutExpiredError: the deadline passed; the message tells the last error.
        RayStreamError: the service refused.
    """
    last: RayStreamError | None = None
    backoff_ms = _BACKOFF_MS
    while True:
        answer = _attempt(method, request, deadline, attempt_ms)
        if answer is not None and not isinstance(answer, RayStreamError):
            return answer
        if answer is not None and not answer.retriable:
            raise answer
        last = answer or last
        if not deadline.left_ms():
            raise timed_out(what, deadline, last)
        if answer is not None:
            pause(min(backoff_ms, deadline.left_ms()))
            backoff_ms = min(2 * backoff_ms, _BACKOFF_MAX_MS)


def call_once(
    method: Callable[[RequestT, Reply[AnswerT]], None],
    request: RequestT,
    *,
    deadline: Deadline,
    what: str,
) -> AnswerT:
    """Ask, and repeat only what certainly was not done.

    Raises:
        OutcomeUnknownError: it may have been done, or not; the caller finds out.
        TimeoutExpiredError, RayStreamError: as `call`.
    """
    backoff_ms = _BACKOFF_MS
    while True:
        answer = _attempt(method, request, deadline, None)
        if answer is None:
            raise timed_out(what, deadline, None)
        if not isinstance(answer, RayStreamError):
            return answer
        if not answer.retriable or isinstance(answer, OutcomeUnknownError):
            raise answer
        if not deadline.left_ms():
            raise timed_out(what, deadline, answer)
        pause(min(backoff_ms, deadline.left_ms()))
        backoff_ms = min(2 * backoff_ms, _BACKOFF_MAX_MS)


def _attempt(
    method: Callable[[RequestT, Reply[AnswerT]], None],
    request: RequestT,
    deadline: Deadline,
    attempt_ms: int | None,
) -> AnswerT | RayStreamError | None:
    mailbox = Mailbox()  # of its own, so that the answer to an earlier attempt is not taken for it
    method(request, mailbox.reply_to(0))
    left_ms = deadline.left_ms() if attempt_ms is None else min(attempt_ms, deadline.left_ms())
    while True:
        arrived = mailbox.take(min(left_ms, _SLICE_MS))
        if arrived is not None:
            answer: AnswerT | RayStreamError = arrived[1]
            return answer
        left_ms -= _SLICE_MS
        if left_ms <= 0 or not deadline.left_ms():
            return None


def pause(wait_ms: int) -> None:
    """Wait, so that Ctrl-C ends it."""
    Mailbox().take(wait_ms)


def timed_out(what: str, deadline: Deadline, last: RayStreamError | None) -> TimeoutExpiredError:
    """The error of a call that ran out of time."""
    reason = f"the last answer was {type(last).__name__}: {last}" if last else "no answer came"
    return TimeoutExpiredError(
        f"{what} did not end within {deadline.timeout_s:g} s: {reason}; "
        "check that the cluster is up, or give it a longer timeout"
    )
