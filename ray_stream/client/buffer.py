"""Records that were accepted and not yet built into batches, and the memory of all accepted ones.

Owns: the open batch of each topic, when it is sealed, `buffer_memory`, and blocking while that is
full. Refuses: building and sending (`sender`), checking records (`producer`).

Every method takes the lock. The one thing done without it is `Producer.send`'s short way: a record
that fits below `OpenRows.limit` is put into the open batch directly. That is safe in any thread
because a batch is sealed by setting its limit to 0 first and counting its cells afterwards, and the
short way looks at the limit again after putting: what came too late is taken out and put elsewhere.
The bytes set aside for an open batch bound what the short way may use of the buffer.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ray_stream.client.columns import Columns, Single
from ray_stream.client.record_checks import BATCH_OVERHEAD_BYTES
from ray_stream.client.rows import PLAIN, OpenRows, Row, widened
from ray_stream.clock import Clock
from ray_stream.config import ProducerConfig
from ray_stream.errors import BufferFullError
from ray_stream.metadata.commands import TopicMetadata

OPEN_PART = 4
"""The open batch of a topic is at most such a part of `buffer_memory`."""
OPEN_BYTES_MAX = 1 << 30
"""And never more: the offsets of an Arrow column end at 2 GiB."""
BACKLOG_LINGER_MS = 100
"""While as much of a topic is under way as its open batch may take, that grows for so long."""


class SealedColumns(NamedTuple):
    """Columns that were given as such."""

    topic: TopicMetadata
    columns: Columns
    granted: int


class Taken(NamedTuple):
    """Records on their way from here to batches."""

    topic: TopicMetadata
    records: OpenRows | Columns
    granted: int

    @property
    def rows(self) -> int:
        """How many records."""
        if isinstance(self.records, Columns):
            return self.records.count
        return (self.records.taken or 0) // self.records.width

    def single(self) -> Single | None:
        """The record, if it is one alone that needs no columns."""
        return None if isinstance(self.records, Columns) else self.records.single()

    def columns(self) -> Columns:
        """The records as columns; made here, if they came one at a time."""
        return self.records if isinstance(self.records, Columns) else self.records.columns()


class SendBuffer:
    """What lies between the callers of a producer and its sender.

    Args:
        config: sizes and times.
        clock: for opening times, stamps, and how long a caller is blocked.
        check: raises when nothing may be put any more (closed, forked, broken).
        check_wait: raises when the caller must not wait.
        wake: tells the sender that there is something for it.
    """

    def __init__(
        self,
        config: ProducerConfig,
        clock: Clock,
        check: Callable[[], None],
        check_wait: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self.open: dict[str, OpenRows] = {}
        """By topic, in the order of opening; also read by the short way."""
        self._config = config
        self._clock = clock
        self._check = check
        self._check_wait = check_wait
        self._wake = wake
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting = 0
        self._sealed: deque[OpenRows | SealedColumns] = deque()
        self._widths: dict[str, int] = {}
        self._used = 0
        """Bytes set aside: for open and sealed batches, and for all taken and unresolved ones."""
        self._taken = 0
        """The last part of `_used`."""
        self._building = 0
        """Bytes set aside for what the sender took and has not built yet; also in `_used`."""
        self._being_built: OpenRows | SealedColumns | None = None
        """What that is: until it is built, and counted by the sender, it is counted here."""
        self._generation = 0
        self.outside: Callable[[], int] = int
        """Bytes of records that are under way and went past here; until they are `adopted`."""

    # --- callers -----------------------------------------------------------------------------

    def put(self, topic: TopicMetadata, row: Row, size: int, *, at_once: bool) -> None:
        """Accept one record.

        Args:
            topic: where it goes.
            row: its cells, as `rows` lays them out.
            size: its bytes, not above the topic's `max_message_bytes`.
            at_once: do not wait for others.

        Raises:
            BufferFullError: there was no room for `max_block_ms`.
        """
        with self._lock:
            try:
                opened = topic.name not in self.open
                self._wait_for_room(lambda: self._place(topic, row, size), "this record")
                if at_once:
                    self._seal(topic.name)
            except BaseException:
                self._recount()
                raise
        if at_once or opened or topic.name not in self.open:
            self._wake()

    def put_columns(
        self, topic: TopicMetadata, columns: Columns, part_bytes: int, before: int = 0
    ) -> None:
        """Accept many records, part by part as there is room.

        Args:
            topic: where they go.
            columns: the records; their time of creation is set here.
            part_bytes: about the size of a part.
            before: rows of the same call that were accepted before these.

        Raises:
            BufferFullError: no part was accepted for `max_block_ms`; says how many rows were.
        """
        part_bytes = max(1, min(part_bytes, self._config.buffer_memory // 4))
        start = 0
        while start < columns.count:
            stop, size = columns.run_of_bytes(start, part_bytes)
            part = columns.slice(start, stop)
            self._put_part(topic, part, size, f"rows from {before + start} on")
            self._wake()
            start = stop

    def _put_part(self, topic: TopicMetadata, part: Columns, size: int, what: str) -> None:
        def place() -> bool:
            self._seal(topic.name)
            if not self._has_room(size if size < self._config.buffer_memory else 1):
                return False
            part.created_ms = self._clock.monotonic_ms()
            part.generation = self._generation
            self._sealed.append(SealedColumns(topic, part, size))
            self._used += size
            return True

        with self._lock:
            try:
                self._wait_for_room(place, what)
            except BaseException:
                self._recount()
                raise

    def put_back(self, rows: OpenRows) -> None:
        """A record may have come into `rows` after they were taken: put it elsewhere."""
        with self._lock:
            if rows.taken is None or len(rows.rows) == rows.taken:
                return
            self._check()
            late = rows.leftover()
            again = self._new_rows(rows.topic, rows.width)
            again.rows = late
            again.generation = self._generation
            self._sealed.append(again)
        self._wake()

    def seal_all(self) -> int:
        """Seal every open batch for a flush; returns the number of that flush."""
        with self._lock:
            for name in list(self.open):
                self._seal(name)
            self._generation += 1
            return self._generation - 1

    # --- the sender --------------------------------------------------------------------------

    def seal_due(self, now_ms: int, backlog: Callable[[str], bool]) -> int | None:
        """Seal what lingered long enough; returns when the next is due.

        Args:
            now_ms: monotonic.
            backlog: whether a topic's batches wait to be sent as it is.
        """
        linger_ms = self._config.linger_ms
        next_ms = None
        with self._lock:
            for name, rows in list(self.open.items()):
                due_ms = rows.opened_ms + linger_ms
                is_busy = self._taken >= rows.full_at or backlog(name)
                if due_ms <= now_ms and is_busy:
                    due_ms = rows.opened_ms + max(linger_ms, BACKLOG_LINGER_MS)
                if due_ms <= now_ms:
                    self._seal(name)
                elif next_ms is None or due_ms < next_ms:
                    next_ms = due_ms
                if rows.opened_ms + linger_ms > now_ms:
                    break  # the others were opened later
        return next_ms

    def take(self) -> Taken | None:
        """The oldest sealed records; what comes after that is put elsewhere."""
        with self._lock:
            while self._sealed:
                item = self._sealed.popleft()
                if isinstance(item, SealedColumns):
                    self._building, self._being_built = item.granted, item
                    return Taken(item.topic, item.columns, item.granted)
                if self.open.get(item.topic.name) is item:
                    del self.open[item.topic.name]
                if item.taken is None:  # sealed twice, when a caller was interrupted
                    item.take()
                    self._building, self._being_built = item.granted, item
                    return Taken(item.topic, item, item.granted)
            return None

    def taken(self, granted: int, size: int) -> None:
        """What was taken has been built, and is so many bytes of records."""
        with self._lock:
            self._used += size - granted
            self._taken += size
            self._building, self._being_built = 0, None

    def adopted(self, size: int) -> None:
        """So many bytes of records went past here, and are counted here from now on."""
        with self._lock:
            self._used += size
            self._taken += size

    def is_free(self, topic: str, size: int) -> bool:
        """Whether a record of a topic may go past here: nothing older waits, and there is room."""
        with self._lock:
            self._check()
            return (
                topic not in self.open
                and not self._sealed
                and self._being_built is None
                and not self._waiting
                and self._has_room(size)
            )

    @property
    def generation(self) -> int:
        """The number of the next flush."""
        return self._generation

    def release(self, size: int) -> None:
        """So many bytes of records are resolved."""
        with self._lock:
            self._used -= size
            self._taken -= size
            if self._waiting:
                self._room.notify_all()

    def interrupt(self) -> None:
        """Callers that wait for room look again whether they may."""
        with self._lock:
            self._room.notify_all()

    @property
    def has_sealed(self) -> bool:
        """Whether `take` has something."""
        return bool(self._sealed)

    def unbuilt_records(self, generation: int | None) -> int:
        """Records that were not taken yet.

        Args:
            generation: only up to this flush; None: all, open ones included.
        """
        with self._lock:
            count = 0
            items = {id(item): item for item in self._sealed}
            if self._being_built is not None:
                items[id(self._being_built)] = self._being_built
            if generation is None:
                items |= {id(rows): rows for rows in self.open.values()}
            for item in items.values():
                if isinstance(item, SealedColumns):
                    if generation is None or item.columns.generation <= generation:
                        count += item.columns.count
                elif generation is None or (item.generation or 0) <= generation:
                    count += len(item.rows) // item.width
            return count

    @property
    def used_bytes(self) -> int:
        """Bytes of all accepted and unresolved records."""
        with self._lock:
            sealed = {id(rows): rows.bytes for rows in self._sealed if isinstance(rows, OpenRows)}
            sealed |= {id(rows): rows.bytes for rows in self.open.values()}
            columns = sum(item.granted for item in self._sealed if isinstance(item, SealedColumns))
            outside = self.outside()
            return outside + self._taken + self._building + columns + sum(sealed.values())

    # --- with the lock -----------------------------------------------------------------------

    def _wait_for_room(self, place: Callable[[], bool], what: str) -> None:
        give_up_ms: int | None = None
        while True:
            self._check()
            if place():
                return
            now_ms = self._clock.monotonic_ms()
            if give_up_ms is None:
                give_up_ms = now_ms + self._config.max_block_ms
            if now_ms >= give_up_ms:
                raise BufferFullError(
                    f"buffer_memory={self._config.buffer_memory} stayed full for max_block_ms="
                    f"{self._config.max_block_ms}: {what} and what follows was not accepted, what "
                    "came before is kept; send more slowly, or raise one of the two"
                )
            self._check_wait()
            if 2 * sum(rows.granted for rows in self.open.values()) >= self._used:
                # Nothing else is left to make room. Else what is under way will, and batches
                # that are sealed too early are many small ones.
                for name in list(self.open):
                    self._seal(name)
            self._wake()
            self._waiting += 1
            try:
                self._room.wait((give_up_ms - now_ms) / 1000)
            finally:
                self._waiting -= 1

    def _place(self, topic: TopicMetadata, row: Row, size: int) -> bool:
        rows = self.open.get(topic.name)
        width = len(row)
        if rows is not None and (
            rows.limit == 0
            or rows.width < width
            or rows.topic is not topic
            or rows.bytes + size > rows.full_at
        ):
            self._seal(topic.name)
            rows = None
        if not self._has_room(1):
            return False
        if rows is None:
            rows = self._new_rows(topic, max(width, self._widths.get(topic.name, PLAIN)))
            self._widths[topic.name] = width
        rows.rows.extend(row if width == rows.width else widened(list(row), width, rows.width))
        rows.bytes += size
        self._grant(rows)
        self.open[topic.name] = rows
        if rows.bytes >= rows.full_at:
            self._seal(topic.name)
        return True

    def _new_rows(self, topic: TopicMetadata, width: int) -> OpenRows:
        config, clock = self._config, self._clock
        record_max = min(
            topic.config.max_message_bytes,
            max(1, topic.config.max_batch_bytes - BATCH_OVERHEAD_BYTES),
        )
        full_at = min(config.batch_size, record_max)
        if width != PLAIN:  # these are shared out among the partitions
            many = min(config.batch_size * len(topic.partitions), config.buffer_memory // OPEN_PART)
            full_at = max(full_at, min(many, OPEN_BYTES_MAX))
        return OpenRows(topic, width, full_at, record_max, clock.monotonic_ms(), clock.now_ms())

    def _grant(self, rows: OpenRows) -> None:
        """Set aside what the batch has, and what it may take without asking."""
        free = self._config.buffer_memory - self._used + rows.granted
        granted = max(rows.bytes, min(rows.full_at, free))
        self._used += granted - rows.granted
        rows.granted = granted
        # A larger record takes the long way, and is checked there.
        rows.limit = min(granted, rows.bytes + rows.record_max)

    def _has_room(self, size: int) -> bool:
        size += self.outside()
        if self._used + size <= self._config.buffer_memory:
            return True
        for rows in self.open.values():  # take back what was set aside and is not used
            if rows.limit:
                rows.limit = rows.bytes
            self._used += rows.bytes - rows.granted
            rows.granted = rows.bytes
        return self._used + size <= self._config.buffer_memory

    def _seal(self, name: str) -> None:
        """Close an open batch; at every moment it can be reached, should this be interrupted."""
        rows = self.open.get(name)
        if rows is None:
            return
        if rows.taken is None:
            if rows.generation is None:
                rows.generation = self._generation
            self._sealed.append(rows)
            rows.limit = 0
        del self.open[name]

    def _recount(self) -> None:
        """After an interruption in the middle of counting."""
        rows = {id(item): item.granted for item in self._sealed}
        rows |= {id(item): item.granted for item in self.open.values()}
        self._used = self._taken + self._building + sum(rows.values())
