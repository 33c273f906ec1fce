"""A log beside a list: whatever is done to it, both hold the same batches."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from ray_stream.errors import (
    OffsetOutOfRangeError,
    OutOfOrderSequenceError,
    UnknownProducerIdError,
)
from ray_stream.log.partition_log import Appended, PartitionLog
from ray_stream.log.verify import FindingKind, verify_log
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.testing.batches import batch_of, log_options
from ray_stream.testing.memory import MemoryStorage
from ray_stream.types import Durability

PATH = "/data/log"
PRODUCERS = (11, 12)
NO_DAMAGE = {FindingKind.TORN, FindingKind.HINT}


@dataclass(frozen=True)
class Stored:
    """One batch as the model keeps it."""

    base_offset: int
    records: int
    payload: bytes
    timestamp: int
    producer_id: int
    base_sequence: int
    leader_epoch: int
    append_timestamp: int

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.records


class LogBesideList(RuleBasedStateMachine):
    """`model` is all that was written; below `synced` it must survive anything."""

    @initialize(
        durability=st.sampled_from(Durability),
        segment_bytes=st.sampled_from([500, 1500, 1 << 20]),
        interval=st.sampled_from([1, 300, 4096]),
    )
    def begin(self, durability: Durability, segment_bytes: int, interval: int) -> None:
        self.storage = MemoryStorage()
        self.storage.make_directory("/data")
        self.options = log_options(
            durability=durability, segment_bytes=segment_bytes, index_interval_bytes=interval
        )
        self.boot = 1
        self.now_ms = 1_000_000
        self.model: list[Stored] = []
        self.start = 0
        self.synced = 0
        self.readable = 0
        self.epoch = 0
        self.sent = 0
        self.log = PartitionLog.create(
            self.storage, PATH, self.options, boot_id="boot 1", now_ms=self.now_ms
        )
        self.lead()

    @property
    def end(self) -> int:
        return max(self.start, self.model[-1].next_offset if self.model else 0)

    def last_of(self, producer_id: int) -> Stored | None:
        return next((one for one in reversed(self.model) if one.producer_id == producer_id), None)

    # --- what is done ----------------------------------------------------------------------------

    @rule()
    def lead(self) -> None:
        self.epoch += 1
        self.log.begin_epoch(self.epoch)
        assert self.log.leader_epoch == self.epoch

    @rule(
        sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
        producer=st.sampled_from(PRODUCERS),
    )
    def append(self, sizes: list[int], producer: int) -> None:
        """Several batches in one call, the last of them by an idempotent producer."""
        self.now_ms += 7
        batches, expected = [], []
        offset = self.end
        last = self.last_of(producer)
        for number, size in enumerate(sizes):
            self.sent += 1
            values = [b"%d" % self.sent] * (size % 3 + 1) + [b"x" * size]
            idempotent = number == len(sizes) - 1
            sequence = (last.base_sequence + last.records if last else 0) if idempotent else -1
            timestamp = (self.now_ms * 31 + self.sent * 977) % 5_000
            batch = batch_of(
                values,
                timestamp=timestamp,
                producer_id=producer if idempotent else -1,
                producer_epoch=0 if idempotent else -1,
                base_sequence=sequence,
            )
            stored = Stored(
                offset,
                len(values),
                batch[HEADER_BYTES:],
                timestamp,
                producer if idempotent else -1,
                sequence,
                self.epoch,
                self.now_ms,
            )
            batches.append(batch)
            expected.append(stored)
            offset = stored.next_offset
        results = self.log.append(batches, leader_epoch=self.epoch, now_ms=self.now_ms)
        assert results == [
            Appended(one.base_offset, one.next_offset, self.now_ms) for one in expected
        ]
        self.model += expected

    @rule(producer=st.sampled_from(PRODUCERS), back=st.integers(0, 6))
    def retry(self, producer: int, back: int) -> None:
        """A batch that was written is sent again: one of the last five is known again."""
        mine = [one for one in self.model if one.producer_id == producer]
        if back >= len(mine):
            return
        again = mine[-1 - back]
        batch = batch_of(
            [b"retry"] * again.records,
            timestamp=again.timestamp,
            producer_id=producer,
            producer_epoch=0,
            base_sequence=again.base_sequence,
        )
        (result,) = self.log.append([batch], leader_epoch=self.epoch, now_ms=self.now_ms + 1)
        if back < 5:
            first = (again.base_offset, again.next_offset, again.append_timestamp)
            assert result == Appended(*first, duplicate=True)
        else:
            assert isinstance(result, OutOfOrderSequenceError)

    @rule(producer=st.sampled_from(PRODUCERS))
    def skip_a_sequence(self, producer: int) -> None:
        last = self.last_of(producer)
        sequence = last.base_sequence + last.records + 1 if last else 5
        batch = batch_of([b"gap"], producer_id=producer, producer_epoch=0, base_sequence=sequence)
        (result,) = self.log.append([batch], leader_epoch=self.epoch, now_ms=self.now_ms)
        refusal = OutOfOrderSequenceError if last else UnknownProducerIdError
        assert isinstance(result, refusal)

    @rule()
    def sync(self) -> None:
        job = self.log.sync_job()
        if job is None:
            assert self.log.synced_end == self.log.written_end
            return
        job.run()
        self.log.synced(job)
        self.synced = self.end
        assert self.log.synced_end == self.end

    @rule(size=st.integers(1, 40))
    def append_during_a_sync(self, size: int) -> None:
        job = self.log.sync_job()
        before, issued_at = self.end, self.storage.disk.sequence
        self.append([size], PRODUCERS[0])
        if job is not None:
            with self.storage.syncs_issued_at(issued_at):
                job.run()
            self.log.synced(job)
            self.synced = before

    @rule()
    def roll(self) -> None:
        self.log.roll()

    @rule()
    def checkpoint(self) -> None:
        self.log.checkpoint()

    @rule(durability=st.sampled_from(Durability), segment_bytes=st.sampled_from([400, 1 << 20]))
    def alter(self, durability: Durability, segment_bytes: int) -> None:
        self.options = log_options(
            durability=durability,
            segment_bytes=segment_bytes,
            index_interval_bytes=self.options.index_interval_bytes,
        )
        self.log.set_options(self.options)
        assert self.log.readable_end >= self.readable

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        self.log.truncate(offset, now_ms=self.now_ms)
        self.model = [one for one in self.model if one.next_offset <= offset]
        self.synced = min(self.synced, self.end)
        self.readable = min(self.readable, self.end)
        self.lead()

    @precondition(lambda self: self.synced > self.start)
    @rule(data=st.data())
    def advance_start(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.synced))
        left = self.log.advance_start(offset)
        self.start = max(self.start, offset)
        if data.draw(st.booleans()):
            self.log.unlink_left(left)
            assert self.log.left == ()

    # --- what befalls it -------------------------------------------------------------------------

    @rule()
    def close_and_open(self) -> None:
        self.log.close()
        self.synced = self.end
        self.open(self.storage)
        assert self.log.recovery.clean
        assert self.log.written_end == self.log.synced_end == self.end

    @rule()
    def killed(self) -> None:
        """The process dies: nothing written is lost."""
        self.open(self.storage.killed())
        assert not self.log.recovery.torn_tail
        assert self.log.written_end == self.log.synced_end == self.end
        self.synced = self.end

    @rule(seed=st.integers(0, 2**32))
    def power_loss(self, seed: int) -> None:
        """Unsynced writes are kept, dropped or torn: a prefix of the batches remains."""
        self.boot += 1
        self.open(self.storage.crashed(random.Random(seed)))
        end = self.log.written_end
        assert end >= self.synced
        assert not self.log.recovery.quarantined
        assert self.log.synced_end == end
        if end < self.end:
            assert self.log.recovery.needs_new_epoch
        self.model = [one for one in self.model if one.next_offset <= end]
        assert self.end == end
        self.synced = end
        self.readable = min(self.readable, end)
        self.lead()

    def open(self, storage: MemoryStorage) -> None:
        findings = list(verify_log(storage, PATH))
        assert [one for one in findings if one.kind not in NO_DAMAGE] == []
        self.storage = storage
        self.log = PartitionLog.open(
            storage, PATH, self.options, boot_id=f"boot {self.boot}", now_ms=self.now_ms
        )
        self.readable = min(self.readable, self.end)

    # --- what must hold --------------------------------------------------------------------------

    @invariant()
    def ends_agree(self) -> None:
        log = self.log
        assert log.start_offset == self.start
        assert log.written_end == self.end
        assert self.synced <= log.synced_end <= log.written_end
        assert self.readable <= log.readable_end <= log.written_end
        if self.options.durability == Durability.REPLICATED:
            assert log.readable_end == log.written_end
        self.readable = log.readable_end

    @rule(data=st.data(), bytes_max=st.sampled_from([1, 200, 1000, 1 << 20]))
    def read(self, data: st.DataObject, bytes_max: int) -> None:
        """From anywhere to the end, in chunks."""
        offset = data.draw(st.integers(self.start, self.end))
        wanted = [one for one in self.model if one.next_offset > offset]
        while wanted:
            result = self.log.read(offset, bytes_max=bytes_max, end_offset=self.end)
            assert result.batches
            for raw in result.batches:
                stored = wanted.pop(0)
                self.same(raw, stored)
                offset = stored.next_offset
            assert result.next_offset == offset

    @rule(timestamp=st.integers(0, 6_000))
    def find_by_time(self, timestamp: int) -> None:
        first = next(
            (
                one
                for one in self.model
                if one.timestamp >= timestamp and one.next_offset > self.start
            ),
            None,
        )
        found = self.log.offset_for_timestamp(timestamp)
        if first is None or max(first.base_offset, self.start) >= self.log.readable_end:
            assert found is None
        else:
            assert found == (max(first.base_offset, self.start), first.timestamp)

    @rule()
    def outside(self) -> None:
        for offset in (self.start - 1, self.end + 1):
            with pytest.raises(OffsetOutOfRangeError) as raised:
                self.log.read(offset, bytes_max=1, end_offset=self.end)
            assert raised.value.log_start == self.start

    def same(self, raw: memoryview, stored: Stored) -> None:
        header = decode_header(raw)
        assert header.base_offset == stored.base_offset
        assert header.next_offset == stored.next_offset
        assert header.leader_epoch == stored.leader_epoch
        assert header.append_timestamp == stored.append_timestamp
        assert header.durable_offset <= header.base_offset
        assert bytes(raw[HEADER_BYTES:]) == stored.payload


TestLogBesideList = LogBesideList.TestCase
