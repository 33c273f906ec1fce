"""Waiting on an ordinary thread for what another actor answers, and saying in one line what failed.

Owns: deadlines that Ctrl-C cuts short, and what becomes of Ray's errors. Refuses: retries; event
loops (`peers`).
"""

import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, NoReturn

from ray.exceptions import RayError

from ray_stream.errors import ActorStartError, RayStreamError, TimeoutExpiredError

SLICE_S = 0.2
"""Ctrl-C is seen between two waits of so long."""


def answer_of(reference: Any, deadline_s: float, what: str) -> Any:
    """The answer to a call.

    Args:
        reference: of Ray.
        deadline_s: when to give up, on the monotonic clock.
        what: is being waited for, for the message.

    Raises:
        TimeoutExpiredError: no answer in time; the call goes on.
        RayError: the actor failed or died.
    """
    future = reference.future()
    while True:
        try:
            return future.result(min(SLICE_S, max(0.0, deadline_s - time.monotonic())))
        except FutureTimeoutError:
            if future.done():  # its own error: one of ours is a TimeoutError, too
                raise
            if time.monotonic() > deadline_s:
                raise TimeoutExpiredError(f"{what} did not end in time") from None


def raise_plain(error: RayError, what: str) -> NoReturn:
    """Raise what an actor raised, without Ray's tracebacks; or one line about what became of it.

    Args:
        error: of Ray; its text is a traceback.
        what: failed, for the message.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayStreamError):
        raise cause from None
    raise ActorStartError(f"{what} failed: {_one_line(error, cause)}") from error


def _one_line(error: RayError, cause: object) -> str:
    if isinstance(cause, Exception):  # raised in the actor; Ray's own text is a traceback
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " … ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else type(error).__name__
