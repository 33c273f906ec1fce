"""Rows and records of one batch, wherever the position and the end lie."""

from itertools import product

import pytest

from ray_stream.client.decoding import Decoder, take_rows
from ray_stream.client.positions import Budget, PartitionState
from ray_stream.config import ConsumerConfig
from ray_stream.records.header import FLAG_LOG_APPEND_TIME, decode_header
from ray_stream.types import Record, TopicPartition
from tests.unit.client.fake_cluster import restamped, stored

NAME = TopicPartition("t", 3)
DENSE = stored([b"10", b"11", b"12", b"13"], 10)
GAPS = stored([b"11", b"13", b"14"], 10, deltas=[1, 3, 4], last_offset_delta=5)
ALONE = stored([b"12"], 12)
OFFSETS = {DENSE: [10, 11, 12, 13], GAPS: [11, 13, 14], ALONE: [12]}
BATCHES = [DENSE, GAPS, ALONE]
NAMES = ["dense", "gaps", "alone"]


def state_at(raw: bytes, start: int, end: int | None = None) -> PartitionState:
    state = PartitionState(NAME, "id", Budget())
    state.end = end
    state.jump(start)
    state.receive([raw])
    return state


def records(state: PartitionState, limit: int) -> list[Record]:
    """All that is left of the batch, some at a time."""
    decoder = Decoder(ConsumerConfig())
    got: list[Record] = []
    while state.buffer:
        run = decoder.run(state, limit)
        assert len(run) <= limit
        got += run.records
        state.advance(run.stop())
    return got


@pytest.mark.parametrize("raw", BATCHES, ids=NAMES)
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_records_are_those_between_position_and_end(raw: bytes, limit: int) -> None:
    for start, end in product(range(10, 16), [None, *range(11, 17)]):
        state = state_at(raw, start, end)
        wanted = [n for n in OFFSETS[raw] if n >= start and (end is None or n < end)]
        got = records(state, limit)
        assert [(one.offset, one.value) for one in got] == [(n, b"%d" % n) for n in wanted]
        stop = decode_header(raw).next_offset
        assert state.position == max(start, stop if end is None else min(stop, end))


@pytest.mark.parametrize("raw", BATCHES, ids=NAMES)
@pytest.mark.parametrize("limit", [1, 2, None])
def test_rows_are_those_between_position_and_end(raw: bytes, limit: int | None) -> None:
    for start, end in product(range(10, 16), [None, *range(11, 17)]):
        state = state_at(raw, start, end)
        wanted = [n for n in OFFSETS[raw] if n >= start and (end is None or n < end)]
        got: list[int] = []
        while state.buffer:
            rows, position = take_rows(state, limit)
            assert limit is None or rows.num_rows <= limit
            got += rows["offset"].to_pylist()
            state.advance(position)
        assert got == wanted


@pytest.mark.parametrize("raw", [DENSE, GAPS], ids=NAMES[:2])
def test_rows_and_records_take_turns_in_one_batch(raw: bytes) -> None:
    state = state_at(raw, 10)
    rows, position = take_rows(state, 1)
    state.advance(position)
    run = Decoder(ConsumerConfig()).run(state, 1)
    second = [one.offset for one in run.records]
    state.advance(run.stop())
    rest, position = take_rows(state, None)
    assert [*rows["offset"].to_pylist(), *second, *rest["offset"].to_pylist()] == OFFSETS[raw]


def test_a_run_that_is_stopped_gives_out_no_more_and_knows_where_it_was() -> None:
    state = state_at(DENSE, 10)
    run = Decoder(ConsumerConfig()).run(state, 3)
    assert run.position == 10
    assert next(run.records).offset == 10
    assert run.position == 11
    assert run.stop() == 11
    assert list(run.records) == []


def test_the_leaders_clock_is_told_where_the_topic_wants_it() -> None:
    raw = stored([b"10"], 10, timestamps=[5])
    raw = restamped(
        raw,
        base_offset=10,
        flags=decode_header(raw).flags | FLAG_LOG_APPEND_TIME,
        append_timestamp=99,
    )
    (record,) = records(state_at(raw, 10), 10)
    assert (record.timestamp, record.timestamp_type) == (99, 1)
    rows, _ = take_rows(state_at(raw, 10), None)
    assert rows.select(["timestamp", "timestamp_type"]).to_pylist() == [
        {"timestamp": 99, "timestamp_type": 1}
    ]
