"""The bytes of facts."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.config import TopicConfig
from ray_stream.errors import CorruptMetadataError, InvariantViolationError
from ray_stream.metadata.image import Image
from ray_stream.metadata.records import (
    BrokerNamed,
    ClusterFormatted,
    ControllerClaimed,
    DeletionConfirmed,
    DirectoryFound,
    DirectoryOrdered,
    LeadershipClaimed,
    PartitionOffline,
    PartitionOnline,
    PartitionsOpened,
    PartitionsPlaced,
    Record,
    TombstoneKept,
    TopicAdded,
    TopicConfigured,
    TopicRemoved,
    TopicsRetired,
    decode_record,
    encode_record,
)

EACH: list[tuple[Record, str]] = [
    (ClusterFormatted("c", "d", 0, "h", 9), "019601a163a16400a16809"),
    (ControllerClaimed(7), "01920207"),
    (BrokerNamed(2), "01920302"),
    (DirectoryOrdered("d", 2, "h"), "019404a16402a168"),
    (DirectoryFound("d", "h"), "019305a164a168"),
    (PartitionsPlaced("t", 3, ["d"], [(0, 1), (0, -1)]), "019507a1740391a164929200019200ff"),
    (TopicRemoved("t"), "019209a174"),
    (DeletionConfirmed([("t", [0, 1])]), "01920a9192a174920001"),
    (LeadershipClaimed([("t", [0], [5])]), "01920b9193a17491009105"),
    (PartitionsOpened([("t", [0])]), "01920c9192a1749100"),
    (PartitionOffline("t", 0, "EIO"), "01940da17400a345494f"),
    (PartitionOnline("t", 0, 5), "01940ea1740005"),
    (TombstoneKept("t", "n", [("d", [0])]), "01940fa174a16e9192a1649100"),
    (TopicsRetired(["t"]), "01921091a174"),
]


@pytest.mark.parametrize(("record", "data"), EACH, ids=lambda one: type(one).__name__)
def test_a_fact_is_written_with_the_bytes_that_were_decided(record: Record, data: str) -> None:
    assert encode_record(record).hex() == data
    assert decode_record(bytes.fromhex(data)) == record


@pytest.mark.parametrize(
    "record",
    [
        TopicAdded("t", "flights", True, 1, TopicConfig(segment_ms=5), 2, 9),
        TopicConfigured("t", TopicConfig(durability="replicated"), 3),
    ],
)
def test_a_topics_settings_come_back_as_they_were(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


def test_settings_that_an_older_version_did_not_write_have_their_defaults() -> None:
    data = b"\x01" + msgspec.msgpack.encode([8, "t", {"segment_ms": 5}, 3])
    assert decode_record(data) == TopicConfigured("t", TopicConfig(segment_ms=5), 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\x02\x92\x02\x07", "newer version"),
        (b"\x01", "cannot be read"),
        (b"\x01\x92\x63\x07", "cannot be read"),
        (b"\x01\x92\x02\xa1x", "cannot be read"),
        (b"\x01\x92\x02\x07\x00", "cannot be read"),
        (b"\x01\x93\x02\x07\x07", "cannot be read"),
        (b"\x01\x91\x02", "cannot be read"),
    ],
)
def test_other_bytes_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(CorruptMetadataError, match=words):
        decode_record(data)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x01" + data))
def test_random_bytes_are_a_fact_or_our_error(data: bytes) -> None:
    try:
        record = decode_record(data)
    except CorruptMetadataError:
        return
    assert isinstance(record, msgspec.Struct)


IDS = st.sampled_from(["t", "u", "d", "e"])
SMALL = st.integers(-2, 3)
OF_TOPIC = st.lists(st.tuples(IDS, st.lists(SMALL, max_size=3)), max_size=2)
FACTS = st.one_of(
    st.builds(BrokerNamed, SMALL),
    st.builds(ControllerClaimed, SMALL),
    st.builds(DirectoryOrdered, IDS, SMALL, IDS),
    st.builds(DirectoryFound, IDS, IDS),
    st.builds(TopicAdded, IDS, IDS, st.booleans(), SMALL, st.just(TopicConfig()), SMALL, SMALL),
    st.builds(
        PartitionsPlaced,
        IDS,
        SMALL,
        st.lists(IDS, max_size=2),
        st.lists(st.tuples(SMALL, SMALL), max_size=3),
    ),
    st.builds(TopicRemoved, IDS),
    st.builds(DeletionConfirmed, OF_TOPIC),
    st.builds(
        LeadershipClaimed,
        st.lists(
            st.tuples(IDS, st.lists(SMALL, max_size=2), st.lists(SMALL, max_size=2)), max_size=2
        ),
    ),
    st.builds(PartitionsOpened, OF_TOPIC),
    st.builds(PartitionOffline, IDS, SMALL, IDS),
    st.builds(PartitionOnline, IDS, SMALL, SMALL),
    st.builds(TombstoneKept, IDS, IDS, OF_TOPIC),
    st.builds(TopicsRetired, st.lists(IDS, max_size=2)),
)


@given(st.lists(FACTS, max_size=30))
def test_a_fact_that_contradicts_the_ones_before_it_is_our_error_and_no_other(
    facts: list[Record],
) -> None:
    image = Image()
    image.apply(ClusterFormatted("c", "d", 0, "h", 9))
    for fact in facts:
        try:
            image.apply(fact)
        except InvariantViolationError:
            return
