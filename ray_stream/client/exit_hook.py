"""At the end of the process: what open producers still hold is delivered, or told to be lost.

Owns: the one exit hook, and marking producers in forked children. Refuses: starting threads, which
Python no longer allows there; producers' threads are daemons, so they still run.

The hook is registered with the first producer, so after the hooks of whatever transport the
producer was given; hooks run in reverse order, and find the transport alive.
"""

import atexit
import math
import os
import warnings
import weakref
from functools import lru_cache

from ray_stream.client.sender import Sender

EXIT_FLUSH_MS = 10_000

_senders: "weakref.WeakSet[Sender]" = weakref.WeakSet()


def watch(sender: Sender) -> None:
    """Flush this sender at exit, unless it ended before."""
    _senders.add(sender)
    _register()


@lru_cache(maxsize=1)
def _register() -> None:
    atexit.register(_flush_all)
    os.register_at_fork(after_in_child=_after_fork)


def _flush_all() -> None:
    senders = [sender for sender in list(_senders) if not sender.forked and sender.is_running]
    if not senders:
        return
    clock = senders[0].clock
    give_up_ms = clock.monotonic_ms() + EXIT_FLUSH_MS
    for sender in senders:
        sender.close()
    for sender in senders:
        sender.ended.wait(max(0, give_up_ms - clock.monotonic_ms()) / 1000)
    for sender in senders:
        _report(sender)


def _report(sender: Sender) -> None:
    left = sender.unresolved_records
    error = sender.outcomes.take_error()
    if left:
        warnings.warn(
            f"{sender.name}: {left} records were not acknowledged within "
            f"{math.ceil(EXIT_FLUSH_MS / 1000)} s of the exit and may be lost; use the producer in "
            "a `with` block, or flush() it before the end",
            RuntimeWarning,
            stacklevel=2,
        )
    if error is not None:
        warnings.warn(f"{sender.name}: at the exit, {error}", RuntimeWarning, stacklevel=2)


def _after_fork() -> None:
    for sender in list(_senders):
        sender.after_fork()
