"""One consumer actor's work, without Ray: what is handled, committed, told, and when."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pytest

from ray_stream.clock import SystemClock
from ray_stream.cluster.supervision import Phase
from ray_stream.cluster.work import Work, work_of
from ray_stream.cluster.worker import Job, Worker
from ray_stream.errors import (
    CoordinatorNotAvailableError,
    CorruptRecordError,
    DeserializationError,
    FencedMemberEpochError,
    HandlerError,
    RayStreamError,
)
from ray_stream.records.schema import RECORD_SCHEMA
from ray_stream.types import Record, TopicPartition

ZERO = TopicPartition("t", 0)


def record(offset: int, partition: int = 0) -> Record:
    return Record("t", partition, offset, 0, 0, None, b"%d" % offset, (), 1)


class FakeReader:
    """One partition of so many records; positions and commits as a consumer's."""

    def __init__(self, end: int, start: int = 0) -> None:
        self.end = end
        self.position = start
        self.committed: list[int] = []
        self.closed = False
        self.raises: list[RayStreamError] = []
        """By the next polls."""
        self.refuses: list[RayStreamError] = []
        """By the next commits."""
        self.at_end: Callable[[], object] = lambda: None
        self.found: Callable[[], object] = lambda: None
        self.stored: Callable[[], object] = lambda: None
        self.changed: Callable[[], None] = lambda: None

    def poll(self, max_records: int | None = None, timeout: float | None = 1.0) -> list[Record]:
        del timeout
        if self.raises:
            raise self.raises.pop(0)
        first, behind = self.position, min(self.end, self.position + (max_records or self.end))
        if first == behind:
            self.at_end()
        else:
            self.found()
        self.position = behind
        return [record(offset) for offset in range(first, behind)]

    def fetch(self, max_records: int | None = None, timeout: float | None = 1.0) -> pa.Table:
        rows = [
            {"offset": one.offset, "topic": one.topic, "partition": one.partition}
            for one in self.poll(max_records, timeout)
        ]
        return pa.Table.from_pylist(rows, RECORD_SCHEMA)

    def assignment(self) -> list[TopicPartition]:
        return [ZERO]

    def seek(self, partition: TopicPartition, start: int) -> None:
        assert partition == ZERO
        self.position = start

    def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        if self.refuses:
            raise self.refuses.pop(0)
        self.committed.append(self.position if offsets is None else offsets[ZERO])
        self.stored()

    def close(self) -> None:
        self.closed = True


class World:
    """A worker, its reader, and an owner who hears and takes everything at once."""

    def __init__(self, handler: Any, records: int = 10, **arguments: Any) -> None:  # noqa: ANN401
        self.reader = FakeReader(records)
        self.results: list[Any] = []
        self.news = 0
        self.waited_for: list[tuple[int, ...]] = []
        """What was in hand whenever the owner's ear was waited for."""
        self.takes = True
        self.taken: Callable[[], object] = lambda: None
        self.work = work(handler, **arguments)
        self.worker = Worker("a", SystemClock(), self._load, self._tell, self._offer, self._wait)
        self.reader.at_end = self.worker.stop

    def _load(self) -> Job:
        def open_reader(changed: Callable[[], None]) -> FakeReader:
            self.reader.changed = changed
            changed()
            return self.reader

        return Job(self.work, open_reader)

    def _tell(self, *, urgent: bool) -> int:
        del urgent
        self.news += 1
        return self.news

    def _offer(self, result: Any, patience_s: float) -> bool:  # noqa: ANN401 - a handler's
        del patience_s
        if self.takes:
            self.results.append(result)
            self.taken()
        return self.takes

    def _wait(self, number: int, patience_s: float) -> None:
        assert (number, patience_s > 0) == (self.news, True)
        self.waited_for.append(tuple(place[2] for place in self.worker.copy().in_hand))

    def run(self) -> None:
        """Until everything was read, or it failed."""
        self.worker.run()
        assert self.reader.closed

    @property
    def failure(self) -> RayStreamError | None:
        return self.worker.copy().failure


def work(handler: Any, **arguments: Any) -> Work:  # noqa: ANN401
    chosen = {
        "batch_format": "records",
        "max_records": 4,
        "constructor_args": (),
        "on_error": "stop",
        "options": {},
        **arguments,
    }
    return work_of(handler, "t", "g", **chosen)


class Failing:
    """A handler that raises at the first calls with a certain offset."""

    def __init__(self, offset: int, times: int, error: BaseException | None = None) -> None:
        self.offset, self.left = offset, times
        self.error = error or ValueError("bad\nrecord")
        self.seen: list[int] = []

    def __call__(self, batch: list[Record]) -> None:
        offsets = [one.offset for one in batch]
        if self.offset in offsets and self.left:
            self.left -= 1
            raise self.error
        self.seen += offsets


def test_every_batch_is_committed_when_its_handler_has_returned() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def handler(batch: list[Record]) -> None:
        seen.append(([one.offset for one in batch], list(world.reader.committed)))

    world = World(handler)
    world.run()
    assert seen == [([0, 1, 2, 3], [0]), ([4, 5, 6, 7], [0, 4]), ([8, 9], [0, 4, 8])]
    assert world.reader.committed == [0, 4, 8, 10]
    told = world.worker.copy()
    assert (told.phase, told.records, told.batches, told.in_hand) == (Phase.LEFT, 10, 3, ())


def test_a_result_has_arrived_before_its_batch_is_committed() -> None:
    order: list[str] = []
    world = World(len)
    world.reader.stored = lambda: order.append("committed")
    world.taken = lambda: order.append("taken")
    world.run()
    assert world.results == [4, 4, 2]
    assert order == ["committed", *["taken", "committed"] * 3]


def test_a_result_that_nobody_takes_is_counted_and_hinders_nothing() -> None:
    world = World(len)
    world.takes = False
    world.run()
    assert world.worker.copy().dropped == 3
    assert world.reader.committed[-1] == 10


def test_a_handler_that_raises_ends_the_work_and_its_batch_is_not_committed() -> None:
    handler = Failing(offset=5, times=1)
    world = World(handler)
    world.run()
    assert isinstance(world.failure, HandlerError)
    assert "4 records from t-0@4 on" in str(world.failure)
    assert "ValueError: bad record" in str(world.failure)
    assert "in __call__" in world.failure.traceback
    assert world.worker.copy().cause is handler.error
    assert world.worker.copy().phase == Phase.FAILED
    assert world.reader.committed == [0, 4]


def test_on_retry_the_same_records_come_again_until_it_works() -> None:
    handler = Failing(offset=5, times=3)
    world = World(handler, on_error="retry")
    world.run()
    assert handler.seen == list(range(10))
    assert world.failure is None
    assert world.reader.committed == [0, 4, 8, 10]
    assert world.worker.copy().errors == 3
    assert "bad record" in world.worker.copy().last_error


def test_on_skip_the_batch_is_counted_and_left_out() -> None:
    handler = Failing(offset=5, times=1)
    world = World(handler, on_error="skip")
    world.run()
    assert handler.seen == [0, 1, 2, 3, 8, 9]
    assert world.worker.copy().skipped == 4
    assert world.reader.committed == [0, 4, 8, 10]


@pytest.mark.parametrize("on_error", ["stop", "retry", "skip"])
def test_a_handler_that_exits_ends_the_work_whatever_on_error_says(on_error: str) -> None:
    world = World(Failing(5, 9, SystemExit(3)), on_error=on_error)
    world.run()
    assert "SystemExit: 3" in str(world.failure)
    assert world.reader.committed == [0, 4]


def test_a_class_is_built_once_with_its_arguments() -> None:
    built: list[tuple[int, int]] = []

    class Handler:
        def __init__(self, one: int, two: int) -> None:
            built.append((one, two))

        def __call__(self, batch: list[Record]) -> int:
            return len(batch)

    world = World(Handler, constructor_args=(1, 2))
    world.run()
    assert built == [(1, 2)]
    assert world.results == [4, 4, 2]


def test_a_class_that_cannot_be_built_fails_without_reading_anything() -> None:
    class Handler:
        def __init__(self) -> None:
            raise OSError("no such model")

        def __call__(self, batch: list[Record]) -> None:
            raise AssertionError(batch)

    world = World(Handler)
    world.worker.run()
    assert "making Handler failed" in str(world.failure)
    assert "OSError: no such model" in str(world.failure)
    assert world.reader.position == 0


@pytest.mark.parametrize(("form", "kind"), [("arrow", "Table"), ("pandas", "DataFrame")])
def test_batches_come_in_the_wanted_form(form: str, kind: str) -> None:
    world = World(lambda batch: (type(batch).__name__, len(batch)), batch_format=form)
    world.run()
    assert world.results == [(kind, 4), (kind, 4), (kind, 2)]
    assert world.reader.committed == [0, 4, 8, 10]
    assert world.waited_for[0] == (0,)


def test_the_owner_hears_of_the_first_batch_of_a_partition_before_its_handler_is_called() -> None:
    """So that a batch that kills processes is known by its offset, whoever gets it next."""
    world = World(Failing(0, 0))
    world.run()
    assert world.waited_for == [(0,)], "of the first, and not of those behind it"


def test_a_stop_waits_for_the_batch_in_hand_and_commits_it() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handler(batch: list[Record]) -> None:
        del batch
        begun.set()
        assert go_on.wait(30)

    world = World(handler)
    thread = threading.Thread(target=world.run)
    thread.start()
    assert begun.wait(30)
    assert world.worker.copy().handling_since_ms > 0
    world.worker.stop()
    assert world.reader.committed == [0]
    go_on.set()
    thread.join(30)
    assert world.reader.committed == [0, 4]
    assert world.worker.copy().phase == Phase.LEFT


def test_what_was_read_while_the_stop_came_is_left_to_the_next_owner() -> None:
    world = World(seen := Failing(0, 0))
    world.reader.found = world.worker.stop
    world.run()
    assert (seen.seen, world.reader.committed) == ([], [0])
    assert world.reader.closed


def test_a_commit_that_was_refused_is_told_and_the_work_goes_on() -> None:
    world = World(Failing(0, 0))
    world.reader.refuses = [FencedMemberEpochError("others have it now")]
    world.run()
    assert world.failure is None
    assert world.reader.committed == [4, 8, 10]
    assert "others have it now" in world.worker.copy().last_error


def test_what_may_work_later_is_tried_later() -> None:
    handler = Failing(0, 0)
    world = World(handler)
    world.reader.raises = [CoordinatorNotAvailableError("being replaced")]
    world.run()
    assert handler.seen == list(range(10))
    assert world.worker.copy().errors == 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [(CorruptRecordError("t", 0, 2, 5, "rot"), 3), (DeserializationError("t", 0, 4, "no"), 1)],
    ids=["damage", "deserializer"],
)
def test_what_cannot_be_read_is_skipped_only_on_request(error: RayStreamError, lost: int) -> None:
    handler = Failing(0, 0)
    world = World(handler)
    world.reader.raises = [error]
    world.run()
    assert world.failure == error
    assert handler.seen == []

    handler = Failing(0, 0)
    world = World(handler, on_error="skip")
    world.reader.raises = [error]
    world.run()
    assert handler.seen == list(range(5, 10))
    assert world.worker.copy().skipped == lost


def test_a_job_that_does_not_arrive_is_told() -> None:
    world = World(lambda batch: batch)
    world.worker._load = lambda: (_ for _ in ()).throw(ModuleNotFoundError("no module 'x'"))
    world.worker.run()
    assert "ModuleNotFoundError: no module 'x'" in str(world.failure)
    assert world.worker.copy().phase == Phase.FAILED


def test_where_a_partition_began_is_stored_before_anything_of_it_is_handled() -> None:
    """Else a replacement that begins at "latest" would begin behind what this one dies of."""
    world = World(Failing(100, 1))
    world.reader = FakeReader(end=104, start=100)
    world.reader.at_end = world.worker.stop
    world.run()
    assert world.reader.committed == [100]


def test_where_an_empty_partition_stands_is_stored() -> None:
    world = World(Failing(0, 0))
    world.reader = FakeReader(end=7, start=7)
    world.reader.at_end = world.worker.stop
    world.run()
    assert world.reader.committed == [7]


JOINS = """
import sys
from ray_stream.clock import SystemClock
from ray_stream.cluster.work import work_of
from ray_stream.cluster.worker import Job, Worker
from ray_stream.errors import InvalidArgumentError

def join(changed):
    print("pandas" in sys.modules)
    raise InvalidArgumentError("seen enough")

work = work_of(print, "t", "g", batch_format=sys.argv[1], max_records=1, constructor_args=(),
               on_error="stop", options={})
job = Job(work, join)
told = lambda **_: 0
Worker("a", SystemClock(), lambda: job, told, lambda *_: True, lambda *_: None).run()
"""


@pytest.mark.parametrize(("batch_format", "is_there"), [("arrow", True), ("records", False)])
def test_what_a_handler_of_tables_needs_is_imported_before_the_actor_joins(
    batch_format: str, *, is_there: bool
) -> None:
    pytest.importorskip("pandas")
    command = [sys.executable, "-c", JOINS, batch_format]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(is_there)
