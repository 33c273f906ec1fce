"""What a consumer actor tells its owner, and the results that come along with it.

Owns: the shape of a report, its bytes, and the results that the owner keeps. Refuses: who is told
(`consumer_actor`), and what follows from it (`supervision`).

A report is ours and travels as bytes. Results and a handler's own errors are the user's, and are
pickled as Ray pickles them.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from ray import cloudpickle

from ray_stream.cluster.supervision import Phase, Place
from ray_stream.errors import ConsumerActorError
from ray_stream.rpc.messages import ErrorInfo

RESULTS_BYTES = 64 * 1024 * 1024
SLICE_S = 0.2
"""Ctrl-C is seen between two waits of so long."""


class Report(msgspec.Struct, frozen=True, array_like=True):
    """How an actor is."""

    news: int
    """Counts what it had to tell."""
    phase: Phase
    pid: int
    node_id: str
    partitions: list[tuple[str, int]]
    in_hand: list[Place]
    busy_ms: int
    """For how long its handler runs; -1: it does not."""
    records: int
    batches: int
    skipped: int
    errors: int
    dropped: int
    last_error: str
    failure: ErrorInfo | None = None
    result: int = 0
    """Number of the result that comes along, pickled; 0: none does."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Report)


def packed(report: Report, cause: bytes, result: bytes) -> list[bytes]:
    """A report, and what comes along with it, as a Ray call returns it."""
    try:
        return [_ENCODER.encode(report), cause, result]
    except (UnicodeEncodeError, TypeError, OverflowError):  # what a user's code raised is in there
        return [_ENCODER.encode(_in_plain_text(report)), cause, result]


def _in_plain_text(report: Report) -> Report:
    last_error = _utf8(report.last_error)
    failure = report.failure
    if failure is not None and all(isinstance(one, str) for one in failure.arguments):
        failure = ErrorInfo(failure.name, [_utf8(one) for one in failure.arguments])
    elif failure is not None:
        failure = ErrorInfo(ConsumerActorError.__name__, [f"{failure.name}: {last_error}"])
    return msgspec.structs.replace(report, last_error=last_error, failure=failure)


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def unpacked(frames: list[bytes]) -> tuple[Report, bytes, bytes]:
    """The report, the handler's pickled error, the pickled result."""
    encoded, cause, result = frames
    return _DECODER.decode(encoded), cause, result


def pickled(value: Any) -> bytes:
    """A user's value."""
    data: bytes = cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    return data


def unpickled(data: bytes) -> Any:
    """A user's value again."""
    return cloudpickle.loads(data)


def cause_of(data: bytes) -> BaseException | None:
    """A handler's own error, if it can be had here: its class may be known over there only."""
    if not data:
        return None
    try:
        error = cloudpickle.loads(data)
    except Exception:  # noqa: BLE001 - unpickling runs whatever the class says; the text came, too
        return None
    return error if isinstance(error, BaseException) else None


def pickled_cause(error: BaseException | None) -> bytes:
    """A handler's own error; empty when there is none, or it cannot travel."""
    if error is None:
        return b""
    try:
        return pickled(error)
    except Exception:  # noqa: BLE001 - pickling runs whatever the class says; the text goes anyway
        return b""


class Results:
    """What handlers returned, in the order of arrival; the oldest are dropped above a limit."""

    def __init__(self, limit_bytes: int = RESULTS_BYTES) -> None:
        """Args: limit_bytes: pickled; exceeded by the newest result alone at most."""
        self._limit_bytes = limit_bytes
        self._kept: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = False
        self.dropped = 0
        """How many had to go."""

    def add(self, result: bytes) -> None:
        """Keep one more."""
        with self._changed:
            self._kept.append(result)
            self._bytes += len(result)
            while self._bytes > self._limit_bytes and len(self._kept) > 1:
                self._bytes -= len(self._kept.popleft())
                self.dropped += 1
            self._changed.notify()

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def each(self, check: Callable[[], None]) -> Iterator[Any]:
        """Results, as they come, until there will be no more.

        Args:
            check: called before each wait, and at the end; may raise.
        """
        while True:
            with self._changed:
                if not self._kept:
                    if self._ended:
                        break
                    self._changed.wait(SLICE_S)
                result = self._kept.popleft() if self._kept else None
                if result is not None:
                    self._bytes -= len(result)
            if result is not None:
                yield unpickled(result)
        check()
