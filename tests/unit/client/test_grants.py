"""What a leader lets its neighbour read: every batch once, nothing that is damaged, to its end."""

from itertools import pairwise

import pytest

from ray_stream.client.grants import Grant
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.rpc.messages import Extent
from tests.unit.client.fake_cluster import stored

SIZES = [10, 10, 10, 300, 1, 2_000, 5, 5, 5, 5]
BATCHES: list[bytes] = []
for _size in SIZES:
    BATCHES.append(stored([bytes(_size)] * 3, 3 * len(BATCHES)))
FILE = b"".join(BATCHES)
END = 3 * len(BATCHES)


def grant_of(length: int = len(FILE), end_offset: int = END, position: int = 0) -> Grant:
    return Grant(Extent("path", position, length, FILE[:HEADER_BYTES], end_offset))


def read(grant: Grant, file: bytes = FILE, bytes_max: int = 500) -> tuple[list[bytes], list[int]]:
    """All that it lets be read, and the lengths of the reads."""
    got: list[bytes] = []
    lengths: list[int] = []
    while not grant.is_over:
        wanted = grant.next_length(bytes_max)
        position = grant.position
        batches = grant.take(memoryview(file)[position : position + wanted], wanted)
        assert sum(header.batch_bytes for header, _ in batches) == grant.position - position
        for header, payload in batches:
            got.append(file[position : position + header.batch_bytes])
            assert payload == got[-1][HEADER_BYTES:]
            position += header.batch_bytes
        lengths.append(wanted)
        assert len(lengths) <= 3 * len(BATCHES), "each read gets on"
    return got, lengths


@pytest.mark.parametrize("bytes_max", [-5, 0, 1, 400, 1_000, 10_000])
def test_whatever_the_pieces_every_batch_comes_once_and_in_order(bytes_max: int) -> None:
    got, lengths = read(grant_of(), bytes_max=bytes_max)
    assert got == BATCHES
    biggest = max(map(len, BATCHES)) + HEADER_BYTES
    assert max(lengths) <= max(bytes_max + HEADER_BYTES, biggest)


def test_of_batches_that_are_alike_no_byte_but_headers_is_read_twice() -> None:
    batches = [stored([bytes(1_000)] * 10, 10 * number) for number in range(40)]
    file = b"".join(batches)
    grant = Grant(Extent("path", 0, len(file), file[:HEADER_BYTES], 400))
    got, lengths = read(grant, file, bytes_max=4 * len(batches[0]) + 1_000)
    assert got == batches
    assert len(lengths) == 10
    assert sum(lengths) == len(file) + 9 * HEADER_BYTES


@pytest.mark.parametrize("length", range(len(BATCHES[0]), len(FILE), 97))
def test_what_the_extent_cuts_off_is_not_read(length: int) -> None:
    got, lengths = read(grant_of(length))
    whole = [first for first, _ in pairwise(ends()) if first <= length]
    assert got == BATCHES[: len(whole)]
    assert all(one <= length for one in lengths)


def ends() -> list[int]:
    found = [0]
    for batch in BATCHES:
        found.append(found[-1] + len(batch))
    return [*found[1:], len(FILE) + 1]


@pytest.mark.parametrize("end_offset", range(3, END + 1))
def test_nothing_is_read_that_reaches_behind_the_readable_end(end_offset: int) -> None:
    got, _ = read(grant_of(end_offset=end_offset))
    assert got == BATCHES[: end_offset // 3]


@pytest.mark.parametrize("bytes_max", [0, 500, 10_000])
def test_a_flipped_byte_ends_it_in_front_of_the_batch(bytes_max: int) -> None:
    for place in range(0, len(FILE), 7):
        damaged = bytearray(FILE)
        damaged[place] ^= 0x10
        grant = grant_of()
        got, _ = read(grant, bytes(damaged), bytes_max)
        sound = sum(1 for end in ends() if end <= place)
        assert got == BATCHES[:sound]
        assert grant.is_untouched == (not sound)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES, len(BATCHES[0]) - 1])
def test_a_file_that_is_shorter_than_was_said_has_nothing_to_read(length: int) -> None:
    grant = grant_of()
    assert read(grant, FILE[:length])[0] == []
    assert grant.is_untouched


def test_another_file_of_the_same_name_has_nothing_to_read() -> None:
    other = b"".join(stored([b"x" * size] * 3, 3 * place) for place, size in enumerate(SIZES))
    assert decode_header(other).batch_bytes == len(BATCHES[0])
    grant = grant_of()
    assert read(grant, other)[0] == []
    assert grant.is_untouched


def test_a_header_from_a_leader_that_is_none_has_nothing_to_read() -> None:
    grant = Grant(Extent("path", 0, len(FILE), bytes(HEADER_BYTES), END))
    assert read(grant)[0] == []
    assert grant.is_untouched
