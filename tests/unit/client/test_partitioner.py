"""Keys land where Kafka's clients put them; records without a key stick together."""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.client.partitioner import (
    NO_PARTITION,
    StickyPartitioner,
    murmur2,
    murmur2_of_keys,
    partition_of_key,
    partitions_of_keys,
)

SIGNED = {  # Kafka's UtilsTest, kafkajs' JavaCompatible table, and vectors of our research
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    b"0": 971027396,
    b"1": -1993445489,
    b"128": -326012175,
    b"2187": -1508407203,
    b"16384": -325739742,
    b"78125": -1654490814,
    b"279936": 1462227128,
    b"823543": -2014198330,
    b"2097152": 607668903,
    b"4782969": -1182699775,
    b"10000000": -1830336757,
    b"19487171": -1603849305,
    b"35831808": -857013643,
    b"62748517": -1167431028,
    b"105413504": -381294639,
    b"170859375": -1658323481,
    b"100:48069": 1009543857,
    b"hello": 2132663229,
    b"\x81" * 1000: -525506620,
    b"\xff\xff\xff\xff": 644171429,
    bytes(range(256)): -1948347274,
}
UNSIGNED = {  # librdkafka's rdmurmur2.c
    b"kafka": 0xD067CF64,
    b"giberish123456789": 0x8F552B0C,
    b"1234": 0x9FC97B14,
    b"234": 0xE7C009CA,
    b"34": 0x873930DA,
    b"4": 0x5A4B5CA1,
    b"PreAmbleWillBeRemoved,ThePrePartThatIs": 0x78424F1C,
    b"reAmbleWillBeRemoved,ThePrePartThatIs": 0x4A62B377,
    b"eAmbleWillBeRemoved,ThePrePartThatIs": 0xE0E4E09E,
    b"AmbleWillBeRemoved,ThePrePartThatIs": 0x62B8B43F,
    b"": 0x106E08D9,
}
MASKED = {  # librdkafka's 0048-partitioner.c, with the partition of 17
    b"": (0x106E08D9, 11),
    b"23456": (0x058D780F, 9),
    b"this is another string with more length to it perhaps": (0x4F7703DA, 11),
    b"hejsan": (0x5EC19395, 5),
}
PLACES = {  # (key, partitions) -> partition
    **{
        (key, count): place
        for key, row in {
            b"21": (0, 0, 0, 0, 13, 40, 340),
            b"foobar": (0, 0, 6, 6, 9, 66, 166),
            b"a-little-bit-long-string": (2, 2, 2, 8, 11, 12, 112),
            b"a-little-bit-longer-string": (2, 5, 9, 11, 12, 19, 819),
            b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": (2, 5, 7, 5, 0, 77, 677),
            b"abc": (0, 3, 7, 3, 16, 7, 107),
        }.items()
        for count, place in zip((3, 6, 10, 12, 17, 100, 1000), row, strict=True)
    },
    (b"", 1000): 681,
    (b"a", 1000): 524,
    (b"ab", 1000): 434,
    (b"abc", 1000): 107,
    (b"123456789", 1000): 566,
    (b"\x00 ", 1000): 742,
    (b"1039-36302-36840-2-9f138052", 12): 4,
    (b"1182-07205-22440-2-0ad4507d", 12): 9,
    (b"1388-20023-36900-2-c9985f66", 12): 0,
    (b"1010-98110-23700-2-295bfb4c", 12): 10,
    (b"1175-03505-36600-2-126dd9ca", 12): 1,
    (b"1137-01302-23820-2-d560d49a", 12): 4,
    (b"1011-98208-36480-2-9eef750a", 12): 8,
    (b"599999", 12): 3,
    (b"233-75504-36900-2-609151bd", 12): 10,
    (b"foobar", 50): 16,
    (b"AAPL", 16): 1,
}
HASHES = {key: value & 0xFFFFFFFF for key, value in SIGNED.items()} | UNSIGNED


def test_one_key_hashes_as_in_kafka() -> None:
    assert {key: murmur2(key) for key in HASHES} == HASHES
    assert {key: murmur2(key) & 0x7FFFFFFF for key in MASKED} == {
        key: masked for key, (masked, _) in MASKED.items()
    }


@pytest.mark.parametrize("copies", [1, 40])
def test_a_column_of_keys_hashes_as_in_kafka(copies: int) -> None:
    """Few keys go one at a time, many in steps over the column."""
    keys = list(HASHES) * copies
    hashes = murmur2_of_keys(pa.array(keys, pa.binary()))
    assert hashes.tolist() == [HASHES[key] for key in keys]


def test_keys_land_in_kafkas_partitions() -> None:
    for (key, partitions), place in PLACES.items():
        assert partition_of_key(key, partitions) == place
        assert partitions_of_keys(pa.array([key], pa.binary()), partitions).tolist() == [place]
    for key, (_, place) in MASKED.items():
        assert partition_of_key(key, 17) == place


def test_a_null_key_has_no_partition_and_an_empty_one_has() -> None:
    keys = pa.array([None, b"", b"abc"], pa.binary())
    assert partitions_of_keys(keys, 1000).tolist() == [NO_PARTITION, 681, 107]


def test_a_null_row_that_spans_bytes_is_null_all_the_same() -> None:
    keys = pa.Array.from_buffers(
        pa.binary(),
        3,
        [
            pa.py_buffer(b"\x05"),
            pa.py_buffer(np.array([0, 3, 6, 9], np.int32)),
            pa.py_buffer(b"abcXXXabc"),
        ],
    )
    assert partitions_of_keys(keys, 1000).tolist() == [107, NO_PARTITION, 107]


@given(
    st.lists(st.none() | st.binary(max_size=40), max_size=120),
    st.integers(0, 50),
    st.integers(1, 10_000),
)
def test_a_slice_of_a_column_hashes_like_its_keys(
    keys: list[bytes | None], start: int, partitions: int
) -> None:
    column = pa.array(keys, pa.binary()).slice(start)
    expected = [
        NO_PARTITION if key is None else partition_of_key(key, partitions) for key in keys[start:]
    ]
    assert partitions_of_keys(column, partitions).tolist() == expected


def test_a_few_long_keys_among_many_short_ones_hash_rightly() -> None:
    keys = [b"%d" % number for number in range(200)] + [bytes(range(256)) * 40, b"\x81" * 1000]
    hashes = murmur2_of_keys(pa.array(keys, pa.binary()))
    assert hashes.tolist() == [murmur2(key) for key in keys]


def test_keyless_records_stay_for_a_batch_and_then_move() -> None:
    sticky = StickyPartitioner(100, random.Random(7))
    runs = [sticky.choose(25, lambda: range(50)) for _ in range(40)]
    assert all(len(set(runs[start : start + 4])) == 1 for start in range(0, 40, 4))
    assert len(set(runs)) > 5


def test_keyless_records_avoid_what_is_not_available() -> None:
    sticky = StickyPartitioner(1, random.Random(7))
    assert {sticky.choose(1, lambda: [2, 5]) for _ in range(50)} == {2, 5}
