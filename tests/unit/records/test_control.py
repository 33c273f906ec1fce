"""Markers: written whole, read whole, and never shown."""

import pytest

from ray_stream.errors import CorruptBatchError, InvalidRecordError
from ray_stream.records.batch import check_batch
from ray_stream.records.control import (
    Marker,
    MarkerKind,
    build_control_batch,
    parse_control_batch,
)
from ray_stream.records.header import FLAG_TRANSACTIONAL
from ray_stream.records.reader import decode_columns, to_user_batch


@pytest.mark.parametrize("kind", list(MarkerKind))
@pytest.mark.parametrize("detail", [0, 1, 2**31 - 1, -1])
def test_a_marker_comes_back_as_it_was(kind: MarkerKind, detail: int) -> None:
    batch = build_control_batch(Marker(kind, detail), timestamp=5)
    header = check_batch(batch, produced=False)
    assert header.is_control
    assert parse_control_batch(header, memoryview(batch)[128:]) == Marker(kind, detail)


def test_its_bytes_are_kafkas_control_record_in_an_ordinary_payload() -> None:
    batch = build_control_batch(
        Marker(MarkerKind.COMMIT, 7), timestamp=5, producer_id=9, producer_epoch=1
    )
    header = check_batch(batch, produced=False)
    columns = decode_columns(header, batch[128:])
    assert columns["key"].to_pylist() == [b"\0\0\0\1"]
    assert columns["value"].to_pylist() == [b"\0\0\0\0\0\7"]
    assert header.flags & FLAG_TRANSACTIONAL
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 1, -1)


def test_users_never_see_one_and_producers_never_send_one() -> None:
    batch = build_control_batch(Marker(MarkerKind.LEADER_CHANGE, 1), timestamp=5)
    header = check_batch(batch, produced=False)._replace(base_offset=4)
    assert to_user_batch(header, batch[128:], "t", 0, 0).num_rows == 0
    with pytest.raises(InvalidRecordError):
        check_batch(batch)


def test_every_flipped_bit_of_a_markers_frame_is_refused() -> None:
    batch = build_control_batch(Marker(MarkerKind.COMMIT, 7), timestamp=5)
    header = check_batch(batch, produced=False)
    free = set()
    for bit in range(8 * header.length):
        flipped = bytearray(batch[128:])
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            parse_control_batch(header, flipped)
        except CorruptBatchError:
            continue
        free.add(bit // 8)
    # the kind (commit is 1: its neighbours are 0), and the four bytes of the number
    assert len(free) == 5


@pytest.mark.parametrize("payload", [b"", b"x", bytes(248)])
def test_what_is_no_marker_is_refused(payload: bytes) -> None:
    batch = build_control_batch(Marker(MarkerKind.COMMIT, 7), timestamp=5)
    with pytest.raises(CorruptBatchError, match="not one marker"):
        parse_control_batch(check_batch(batch, produced=False), payload)
