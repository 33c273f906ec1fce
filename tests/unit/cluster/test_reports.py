"""Results on their way to the owner of a group, and errors that may not be able to travel."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import ray

from ray_stream.cluster.consumer_actor import ConsumerActor
from ray_stream.cluster.reports import (
    Report,
    Results,
    cause_of,
    packed,
    pickled,
    pickled_cause,
    unpacked,
)
from ray_stream.cluster.supervision import Phase
from ray_stream.errors import (
    ConsumerActorError,
    DeliveryError,
    HandlerError,
    InvalidRecordError,
)
from ray_stream.rpc.messages import ErrorInfo


def nothing() -> None:
    """No error to raise."""


def test_results_come_in_their_order_and_end_when_the_group_does() -> None:
    results = Results()
    for number in range(3):
        results.add(pickled(number))
    results.end()
    assert list(results.each(nothing)) == [0, 1, 2]
    assert list(results.each(nothing)) == []


def test_the_oldest_results_are_dropped_and_counted() -> None:
    one = pickled(b"x" * 1000)
    results = Results(limit_bytes=3 * len(one))
    for _ in range(10):
        results.add(one)
    results.add(pickled("last"))
    results.end()
    kept = list(results.each(nothing))
    assert kept[-1] == "last"
    assert len(kept) + results.dropped == 11
    assert len(kept) == 3


def test_a_result_above_the_limit_is_kept_alone() -> None:
    results = Results(limit_bytes=10)
    results.add(pickled("small"))
    results.add(pickled("x" * 1000))
    results.end()
    assert list(results.each(nothing)) == ["x" * 1000]
    assert results.dropped == 1


def test_whoever_waits_for_results_gets_them_as_they_come() -> None:
    results = Results()
    got: list[int] = []
    seen = threading.Event()

    def read() -> None:
        for value in results.each(nothing):
            got.append(value)
            seen.set()

    thread = threading.Thread(target=read)
    thread.start()
    results.add(pickled(7))
    assert seen.wait(30)
    results.end()
    thread.join(30)
    assert got == [7]


def test_the_end_tells_why_the_group_failed() -> None:
    def failed() -> None:
        raise ConsumerActorError("it failed")

    results = Results()
    results.add(pickled(1))
    results.end()
    each = results.each(failed)
    assert next(each) == 1
    with pytest.raises(ConsumerActorError):
        next(each)


class NeedsTwo(Exception):  # noqa: N818 - as users name theirs
    """Cannot be unpickled: its constructor wants more than its arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_an_error_that_cannot_travel_is_left_out() -> None:
    assert cause_of(pickled_cause(None)) is None
    assert repr(cause_of(pickled_cause(KeyError("k")))) == "KeyError('k')"
    assert cause_of(pickled_cause(NeedsTwo("a", "b"))) is None
    unpicklable = ValueError(threading.Lock())
    assert pickled_cause(unpicklable) == b""


def test_an_error_whose_text_is_not_utf_8_can_be_told() -> None:
    failure = HandlerError(
        "a", "handling", "FileNotFoundError: '\udcff.csv'", "Traceback: '\udcff.csv'"
    )
    report = Report(
        news=1, phase=Phase.FAILED, pid=1, node_id="", partitions=[], in_hand=[], busy_ms=-1,
        records=0, batches=0, skipped=0, errors=1, dropped=0, last_error=str(failure),
        failure=ErrorInfo.of(failure),
    )  # fmt: skip
    told, _, _ = unpacked(packed(report, b"", b""))
    assert told.failure is not None
    assert isinstance(told.failure.to_error(), HandlerError)


def test_a_result_that_was_dropped_is_not_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)

    async def drop() -> Report:
        actor = ConsumerActor("a", [])
        actor._aio = asyncio.get_running_loop()
        assert not actor._offer("nobody took this", 0.0)
        return unpacked(actor._report())[0]

    assert asyncio.run(drop()).result == 0


def test_a_failure_with_arguments_of_any_kind_can_be_told() -> None:
    first = InvalidRecordError("no")
    failure = DeliveryError((("t", 0, 1, 0),), (("t", 0, None, b"v", first),), first)
    report = Report(
        news=1, phase=Phase.FAILED, pid=1, node_id="", partitions=[], in_hand=[], busy_ms=-1,
        records=0, batches=0, skipped=0, errors=1, dropped=0, last_error=str(failure),
        failure=ErrorInfo.of(failure),
    )  # fmt: skip
    told, _, _ = unpacked(packed(report, b"", b""))
    assert told.failure is not None
