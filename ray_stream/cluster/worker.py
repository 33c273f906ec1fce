"""The work of one consumer actor: take a batch, call the handler, commit, again.

Owns: one consumer and one handler, in one thread; what becomes of a handler's error. Refuses: Ray
(`consumer_actor`), whether there should be an actor at all (`supervision`).

A batch is committed when its handler has returned and its result, if there is one, has been taken:
at least once. While a handler runs nothing else is taken, and a consumer reads ahead by no more
than `fetch_max_bytes`: a slow handler never grows memory.
"""

import importlib
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from ray_stream.clock import Clock
from ray_stream.cluster.supervision import Phase, Place
from ray_stream.cluster.work import Work
from ray_stream.errors import (
    CorruptRecordError,
    DeserializationError,
    HandlerError,
    RayStreamError,
    RetriableError,
    TimeoutExpiredError,
)
from ray_stream.types import Record, TopicPartition

POLL_S = 0.1
"""An actor without records hears so soon that it is to stop."""
RETRY_S = 0.1
RETRY_MAX_S = 10.0
HEARD_S = 1.0
"""How long a batch that may kill the process waits for its owner to have heard of it."""
TAKEN_S = 30.0
"""How long a result waits for its owner to take it; then it is dropped, and counted."""


class Reader(Protocol):
    """What a worker needs of a `client.Consumer`."""

    def poll(self, max_records: int | None = None, timeout: float | None = 1.0) -> list[Record]:
        """Records."""
        ...

    def fetch(self, max_records: int | None = None, timeout: float | None = 1.0) -> pa.Table:
        """Rows."""
        ...

    def assignment(self) -> list[TopicPartition]:
        """What it owns."""
        ...

    def seek(self, partition: TopicPartition, start: int) -> None:
        """Go back, or on."""
        ...

    def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        """Store positions; None: all."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What a handler is given, and where it stands."""

    value: Any
    records: int
    places: tuple[Place, ...]
    """The first offset of each partition in it."""


@dataclass(slots=True)
class Progress:
    """What a worker tells; changed under its lock, copied by whoever reads it."""

    phase: Phase = Phase.STARTING
    partitions: tuple[TopicPartition, ...] = ()
    in_hand: tuple[Place, ...] = ()
    handling_since_ms: int = 0
    """When the handler was called; 0: it is not running."""
    records: int = 0
    batches: int = 0
    skipped: int = 0
    errors: int = 0
    dropped: int = 0
    """Results that nobody took in time."""
    last_error: str = ""
    failure: HandlerError | RayStreamError | None = None
    cause: BaseException | None = None
    """The handler's own error."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, and how to read."""

    work: Work
    open_reader: Callable[[Callable[[], None]], Reader]
    """Makes the consumer; it calls what it is given when partitions come or go."""


class Tell(Protocol):
    """Takes the news that something has changed."""

    def __call__(self, *, urgent: bool) -> int:
        """Give the number of that news; `urgent`: somebody waits for it."""
        ...


class Worker:
    """One actor's work. `run` is its thread's; everything else may be called from any."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        load: Callable[[], Job],
        tell: Tell,
        offer: Callable[[Any, float], bool],
        wait_heard: Callable[[int, float], None],
    ) -> None:
        """Make one that has not begun.

        Args:
            name: of the actor, for messages.
            clock: for how long a handler runs.
            load: gets the job; what it raises ends the work.
            tell: called when `copy` would show something else.
            offer: offers a result for so many seconds; False: nobody took it.
            wait_heard: waits until the owner has heard news of that number, for so many seconds.
        """
        self._name = name
        self._clock = clock
        self._load = load
        self._tell = tell
        self._offer = offer
        self._wait_heard = wait_heard
        self._progress = Progress()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failures_in_a_row = 0
        self._uncommitted = False
        """Partitions came, and where they stand was not stored yet."""
        self._unproven: dict[TopicPartition, None] = {}
        """Partitions that came, and of which no batch was handled yet: whoever had them before may
        have died of the first one."""

    def stop(self) -> None:
        """Finish what is in hand, commit, leave."""
        self._stopping.set()

    def copy(self) -> Progress:
        """How it is now."""
        with self._lock:
            return replace(self._progress)

    # --- the thread ----------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop, or until it fails; `progress` says which."""
        doing = "loading the handler"
        try:
            self._job = self._load()
            self._work = self._job.work
            doing = "consuming"
            handler = self._built()
            if handler is not None:
                self._read(handler)
        except RayStreamError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: told to the owner
            self._fail(self._handler_error(doing, error), error)
        failed = self._progress.failure is not None
        self._set(phase=Phase.FAILED if failed else Phase.LEFT, partitions=(), in_hand=())

    def _built(self) -> Callable[[Any], Any] | None:
        """The handler, ready to be called; None: that failed."""
        work = self._work
        _warm(work.batch_format)
        if not work.is_class:
            return work.handler
        try:
            built: Callable[[Any], Any] = work.handler(*work.constructor_args)
        except BaseException as error:  # noqa: BLE001 - whatever the user's class raises
            doing = f"making {getattr(work.handler, '__name__', 'the handler')}"
            self._fail(self._handler_error(doing, error), error)
            return None
        return built

    def _read(self, handler: Callable[[Any], Any]) -> None:
        if self._stopping.is_set():
            return
        changed = threading.Event()
        reader = self._job.open_reader(changed.set)
        try:
            self._set(phase=Phase.RUNNING)
            while not self._stopping.is_set() and self._progress.failure is None:
                batch = self._take(reader)
                if changed.is_set():
                    changed.clear()
                    self._assigned(reader, batch)
                if batch is not None and batch.records:
                    if not self._stopping.is_set():  # else it is the next owner's
                        self._handle(reader, handler, batch)
                elif batch is not None and self._uncommitted:
                    self._commit(reader)
        finally:
            reader.close()

    def _assigned(self, reader: Reader, batch: Batch | None) -> None:
        """Partitions came or went. Where a new one began is stored before anything is handled.

        Else whoever has it next might begin at a later end of it, if "latest" is where to begin.
        """
        partitions = reader.assignment()
        known = dict.fromkeys(self._progress.partitions)
        new = [one for one in partitions if one not in known]
        self._unproven = {one: None for one in [*self._unproven, *new] if one in partitions}
        self._set(partitions=tuple(partitions))
        self._uncommitted = True
        first = {TopicPartition(*place[:2]): place[2] for place in batch.places} if batch else {}
        self._commit(reader, {one: first[one] for one in new if one in first})

    def _take(self, reader: Reader) -> Batch | None:
        """The next batch; None when there is none, or reading failed and may work again."""
        try:
            if self._work.batch_format == "records":
                return _of_records(reader.poll(self._work.max_records, POLL_S))
            return _of_table(reader.fetch(self._work.max_records, POLL_S), self._work.batch_format)
        except (CorruptRecordError, DeserializationError) as error:
            self._unreadable(reader, error)
        except (RetriableError, TimeoutExpiredError) as error:
            self._note(error)
            self._stopping.wait(POLL_S)
        return None

    def _unreadable(self, reader: Reader, error: CorruptRecordError | DeserializationError) -> None:
        """Damage, or a deserializer's refusal: as `on_error` says."""
        if self._work.on_error == "stop":
            raise error
        self._note(error)
        if self._work.on_error == "retry":
            self._pause()
            return
        name = TopicPartition(error.topic, error.partition)
        if isinstance(error, CorruptRecordError):
            behind, lost = error.next_offset, error.next_offset - error.first_offset
        else:
            behind, lost = error.offset + 1, 1
        reader.seek(name, behind)
        with self._lock:
            self._progress.skipped += lost

    # --- one batch -----------------------------------------------------------------------------

    def _handle(self, reader: Reader, handler: Callable[[Any], Any], batch: Batch) -> None:
        with self._lock:
            self._progress.in_hand = batch.places
            self._progress.handling_since_ms = self._clock.monotonic_ms()
        partitions = [TopicPartition(*place[:2]) for place in batch.places]
        suspected = any(one in self._unproven for one in partitions)
        number = self._tell(urgent=suspected)
        if suspected:
            self._wait_heard(number, HEARD_S)
        try:
            self._deliver(handler(batch.value))
        except BaseException as error:  # noqa: BLE001 - whatever the user's handler raises
            self._raised(reader, batch, error)
        else:
            for one in partitions:
                self._unproven.pop(one, None)
            self._failures_in_a_row = 0
            with self._lock:
                self._progress.records += batch.records
                self._progress.batches += 1
            self._commit(reader)
        with self._lock:
            self._progress.in_hand, self._progress.handling_since_ms = (), 0
        self._tell(urgent=False)

    def _deliver(self, result: Any) -> None:
        if result is not None and not self._offer(result, TAKEN_S):
            with self._lock:
                self._progress.dropped += 1

    def _commit(self, reader: Reader, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        """Store where this actor stands; what could not be stored is handled again."""
        try:
            if offsets is None:
                reader.commit()
                self._uncommitted = False
            elif offsets:
                reader.commit(offsets)
        except RayStreamError as error:
            self._note(error)

    def _raised(self, reader: Reader, batch: Batch, error: BaseException) -> None:
        topic, partition, offset = batch.places[0]
        doing = f"handling {batch.records} records from {topic}-{partition}@{offset} on"
        told = self._handler_error(doing, error)
        if self._work.on_error == "stop" or not isinstance(error, Exception):
            self._fail(told, error)
            return
        self._note(told)
        if self._work.on_error == "skip":
            with self._lock:
                self._progress.skipped += batch.records
            self._commit(reader)
            return
        owned = reader.assignment()
        for topic, partition, offset in batch.places:
            if TopicPartition(topic, partition) in owned:
                reader.seek(TopicPartition(topic, partition), offset)
        self._set(handling_since_ms=0)
        self._pause()

    def _pause(self) -> None:
        """Before the same again; longer each time."""
        self._stopping.wait(min(RETRY_MAX_S, RETRY_S * 2**self._failures_in_a_row))
        self._failures_in_a_row = min(self._failures_in_a_row + 1, 20)

    # --- telling -------------------------------------------------------------------------------

    def _handler_error(self, doing: str, error: BaseException) -> HandlerError:
        lines = traceback.format_exception(error)
        return HandlerError(self._name, doing, _one_line(error), "".join(lines))

    def _note(self, error: RayStreamError) -> None:
        with self._lock:
            self._progress.errors += 1
            self._progress.last_error = f"{type(error).__name__}: {error}"
        self._tell(urgent=True)

    def _fail(self, failure: RayStreamError, cause: BaseException | None = None) -> None:
        """End with that error, unless there is one already; told when the group was left."""
        with self._lock:
            self._progress.errors += 1
            if self._progress.failure is None:
                self._progress.last_error = f"{type(failure).__name__}: {failure}"
                self._progress.failure = failure
                self._progress.cause = cause

    def _set(self, **changes: Any) -> None:
        with self._lock:
            for name, value in changes.items():
                setattr(self._progress, name, value)
        self._tell(urgent=True)


def _warm(batch_format: str) -> None:
    """Import now what the first batch would be kept waiting for, half a second and more.

    An actor without partitions is there to take over at once; and Arrow imports pandas, if it is
    installed, with the first column that a handler turns into NumPy.
    """
    if batch_format == "pandas":
        importlib.import_module("pandas")
    if batch_format != "records":
        pa.chunked_array([[0]]).to_numpy()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _of_records(records: Sequence[Record]) -> Batch:
    places: dict[tuple[str, int], int] = {}
    for record in records:
        places.setdefault((record.topic, record.partition), record.offset)
    return Batch(records, len(records), tuple((*name, first) for name, first in places.items()))


def _of_table(table: pa.Table, batch_format: str) -> Batch:
    places: dict[tuple[str, int], int] = {}
    for rows in table.to_batches():
        for name, first in _firsts(rows).items():
            places.setdefault(name, first)
    value = table.to_pandas() if batch_format == "pandas" else table
    return Batch(value, table.num_rows, tuple((*name, first) for name, first in places.items()))


def _firsts(rows: pa.RecordBatch) -> dict[tuple[str, int], int]:
    """The first offset of each partition. A run of rows is of one partition, mostly."""
    ends = rows.slice(0, 1), rows.slice(rows.num_rows - 1)
    names = [(one["topic"][0].as_py(), one["partition"][0].as_py()) for one in ends]
    if names[0] == names[1]:
        return {names[0]: rows["offset"][0].as_py()}
    found: dict[tuple[str, int], int] = {}
    columns = (rows[name].to_pylist() for name in ("topic", "partition", "offset"))
    for topic, partition, offset in zip(*columns, strict=True):
        found.setdefault((topic, partition), offset)
    return found
