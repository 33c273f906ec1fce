"""Handing out what was fetched: by records, by rows, by batches, all moving the same positions.

Owns: how much is taken of which partition, and that an interrupted call took nothing. Refuses:
what users type, and fetching.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa

from ray_stream.client.calls import Deadline
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.decoding import Decoder, Run, take_rows
from ray_stream.client.driving import Driver
from ray_stream.client.positions import PartitionState
from ray_stream.config import MiB
from ray_stream.errors import CorruptRecordError, DeserializationError, RayStreamError
from ray_stream.types import Record, TopicPartition

TABLE_BYTES_MAX = 4 * MiB
"""In one table: more would leave the processor's cache before anybody looks at it."""
_NO_LIMIT = 2**62

Take = Callable[[PartitionState, int], tuple[int, int]]
"""Told a partition with a buffered batch and how much is wanted: how much it took, and the
position behind that."""


class TakenBatch(NamedTuple):
    """The rows of one stored batch."""

    name: TopicPartition
    rows: pa.RecordBatch
    stored_bytes: int


class InHand(NamedTuple):
    """What the last call handed out of one partition, and nobody has come back from yet."""

    state: PartitionState
    generation: int
    position: int
    """Before it."""
    is_news: bool
    """Whether that position says more than where the partition began."""


class HandOut:
    """The end of the line, on the caller's thread."""

    def __init__(self, core: ConsumerCore, driver: Driver, decoder: Decoder) -> None:
        """Args: core: whose positions move; driver: waits; decoder: makes records."""
        self._core = core
        self._driver = driver
        self._decoder = decoder
        self._run: Run | None = None
        self._in_hand: list[InHand] = []
        self._before_pump = 0
        """Records of a loop that may be handed out before looking at the network again."""

    def next_run(self, limit: int) -> Run | None:
        """Wait for records that a loop will ask for one by one; None when all was read.

        The position follows what the loop asked for; `stop_run` ends it early.
        """
        self.stop_run()
        self._driver.turn()
        state = self._driver.ready() if self._before_pump > 0 else None
        if state is None:
            state = self._driver.wait_ready(None)
            self._before_pump = limit
        if state is None:
            return None
        if not state.buffer:
            raise self._core.take_error(state)
        try:
            self._run = self._decoder.run(state, min(limit, self._before_pump))
        except (CorruptRecordError, DeserializationError):
            self._core.pass_turn(state)
            raise
        self._before_pump -= len(self._run)
        return self._run

    def stop_run(self) -> None:
        """Records that the loop did not ask for go back."""
        run, self._run = self._run, None
        if run is not None:
            position = run.stop()
            if run.is_current:
                self._core.advance(run.state, position)

    def drop_stale_run(self) -> None:
        """A loop gets nothing more of a partition that was taken away meanwhile."""
        if self._run is not None and not self._run.is_current:
            self.stop_run()

    def position(self, state: PartitionState) -> int:
        """The next offset that this partition will hand out; -1 when it is not known yet."""
        run = self._run
        if run is not None and run.state is state and run.is_current:
            return run.position
        return state.position

    def interrupted(self) -> None:
        """A call ended half-way: what was fetched ahead is dropped, positions stay."""
        run, self._run = self._run, None
        if run is not None and run.is_current:
            before = run.state.position
            run.state.position = run.stop()
            run.state.moved = run.state.moved or before != run.state.position
        self._core.restart()

    def come_back(self) -> None:
        """The caller is done with all that was handed out."""
        self.stop_run()
        self._in_hand = []

    def in_hand(self) -> list[InHand]:
        """What the last call handed out; of a loop, the last record."""
        found = list(self._in_hand)
        run = self._run
        if run is not None:
            state, position = run.state, run.in_hand
            is_news = state.moved or position != state.position
            generation = state.generation if run.is_current else -1
            found.append(InHand(state, generation, position, is_news))
        return found

    def progress(self) -> object:
        """Another value when a loop has gone on. The only method that other threads may call."""
        run = self._run
        return None if run is None else (id(run), run.left)

    def records(self, limit: int, deadline: Deadline) -> list[Record]:
        """Up to so many records; none at the deadline."""
        records: list[Record] = []

        def take(state: PartitionState, left: int) -> tuple[int, int]:
            run = self._decoder.run(state, left)
            records.extend(run.records)
            return len(run), run.stop()

        self._collect(limit, deadline, take)
        return records

    def rows(self, limit: int | None, bytes_max: int, deadline: Deadline) -> list[pa.RecordBatch]:
        """Up to so many rows, or what is there up to about so many stored bytes."""
        batches: list[pa.RecordBatch] = []
        space = min(bytes_max, TABLE_BYTES_MAX)

        def take(state: PartitionState, left: int) -> tuple[int, int]:
            nonlocal space
            space -= state.buffer[0].header.batch_bytes
            rows, position = take_rows(state, None if limit is None else left)
            batches.append(rows)
            return (rows.num_rows if space > 0 or not rows.num_rows else left), position

        self._collect(_NO_LIMIT if limit is None else limit, deadline, take)
        return batches

    def next_batch(self, deadline: Deadline | None) -> TakenBatch | None:
        """Wait for one stored batch with rows; None when all was read, or at the deadline."""
        taken: list[TakenBatch] = []

        def take(state: PartitionState, left: int) -> tuple[int, int]:
            stored_bytes = state.buffer[0].header.batch_bytes
            rows, position = take_rows(state, None)
            if not rows.num_rows:
                return 0, position
            taken.append(TakenBatch(state.name, rows, stored_bytes))
            return left, position

        self._collect(1, deadline, take)
        return taken[0] if taken else None

    def _collect(self, limit: int, deadline: Deadline | None, take: Take) -> None:
        """Have `take` called for one partition after the other, until it took enough."""
        self.stop_run()
        left = limit
        before: list[InHand] = []
        try:
            while left > 0:
                is_first = left == limit
                state = self._driver.wait_ready(deadline) if is_first else self._driver.ready()
                if state is None or not (state.buffer or is_first):
                    break
                before.append(InHand(state, state.generation, state.position, state.moved))
                taken = self._take_one(state, left, take, is_first=is_first)
                if taken is None:
                    break
                left -= taken
            self._in_hand = before
            self._driver.pump()  # what is wanted next travels while the caller works
        except RayStreamError:
            raise
        except BaseException:
            self._in_hand = []
            for one in reversed(before):
                one.state.position = one.position
            raise

    def _take_one(
        self, state: PartitionState, left: int, take: Take, *, is_first: bool
    ) -> int | None:
        """How much was taken; None when an error has to wait for the next call."""
        if not state.buffer:
            raise self._core.take_error(state)
        try:
            taken, position = take(state, left)
        except (CorruptRecordError, DeserializationError):
            if not is_first:
                return None
            self._core.pass_turn(state)
            raise
        self._core.advance(state, position)
        return taken
