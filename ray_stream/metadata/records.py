"""The facts of the metadata log: what they say, and their bytes.

Owns: one struct for each kind of fact, and `encode_record` / `decode_record`. Refuses: meaning
(`image`), files (`journal`).

A record is a format number in one byte, then the MessagePack array of a struct: an integer tag,
then the fields in order. Tags and the order of fields are on disk for ever: a new fact gets a new
tag, a field that changes gets a new format number. Bytes that are not exactly that are
`CorruptMetadataError`; nothing is guessed in their place.
"""

import msgspec

from ray_stream.config import TopicConfig
from ray_stream.errors import CorruptMetadataError

FORMAT = 1
"""The leading byte of every record of this version."""

PartitionsOfTopic = tuple[str, list[int]]
"""A topic id, and some of its partitions."""
LeaderEpochsOfTopic = tuple[str, list[int], list[int]]
"""A topic id, some of its partitions, and for each of them its new leader epoch."""
Place = tuple[int, int]
"""Where a partition lives: an index into the record's `directories`, and its slot number."""
DEDICATED_SLOT = -1
"""The slot number of a partition that has an actor of its own."""


class Fact(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, omit_defaults=False
):
    """What all records have in common: nothing but their encoding."""


class ClusterFormatted(Fact, frozen=True, tag=1):
    """The first record of every metadata log: the cluster exists from here on."""

    cluster_id: str
    metadata_directory_id: str
    """The voter: the one directory that holds the metadata log."""
    broker_id: int
    """The broker for which that directory was made."""
    host_id: str
    created_ms: int


class ControllerClaimed(Fact, frozen=True, tag=2):
    """A controller took over; every record behind this one is its word."""

    epoch: int


class BrokerNamed(Fact, frozen=True, tag=3):
    """A broker id was given out; it and all below it are never given again."""

    broker_id: int


class DirectoryOrdered(Fact, frozen=True, tag=4):
    """A directory may be made; recorded before the broker is told. It holds nothing yet."""

    directory_id: str
    broker_id: int
    host_id: str


class DirectoryFound(Fact, frozen=True, tag=5):
    """A known directory was reported from a host: for the first time, or from another one."""

    directory_id: str
    host_id: str


class TopicAdded(Fact, frozen=True, tag=6):
    """A topic exists, with no partition yet; `PartitionsPlaced` follows in the same batch."""

    topic_id: str
    name: str
    dedicated: bool
    replication_factor: int
    config: TopicConfig
    config_version: int
    created_ms: int


class PartitionsPlaced(Fact, frozen=True, tag=7):
    """The next partitions of a topic, numbered from `first`, and where each lives."""

    topic_id: str
    first: int
    directories: list[str]
    places: list[Place]


class TopicConfigured(Fact, frozen=True, tag=8):
    """The whole new config of a topic."""

    topic_id: str
    config: TopicConfig
    config_version: int


class TopicRemoved(Fact, frozen=True, tag=9):
    """A topic became a tombstone, which stays until the holder of each partition confirmed."""

    topic_id: str


class DeletionConfirmed(Fact, frozen=True, tag=10):
    """The files of these partitions of tombstones are gone."""

    partitions: list[PartitionsOfTopic]


class LeadershipClaimed(Fact, frozen=True, tag=11):
    """New leader epochs, durable before anybody is told."""

    claims: list[LeaderEpochsOfTopic]


class PartitionsOpened(Fact, frozen=True, tag=12):
    """These were served for the first time: from here on missing files are a loss."""

    partitions: list[PartitionsOfTopic]


class PartitionOffline(Fact, frozen=True, tag=13):
    """A sync failed: what the page cache shows may not be on disk. Only a repair ends this."""

    topic_id: str
    partition: int
    reason: str


class PartitionOnline(Fact, frozen=True, tag=14):
    """Repaired; failures of leaders up to this epoch are over."""

    topic_id: str
    partition: int
    leader_epoch: int


class TombstoneKept(Fact, frozen=True, tag=15):
    """Only in snapshots: a tombstone, and which directory holds what is left of it."""

    topic_id: str
    name: str
    holders: list[tuple[str, list[int]]]
    """Directory ids, each with the partitions whose deletion is not confirmed."""


class TopicsRetired(Fact, frozen=True, tag=16):
    """Only in snapshots: ids of topics that are gone without a trace, oldest first."""

    topic_ids: list[str]


Record = (
    ClusterFormatted
    | ControllerClaimed
    | BrokerNamed
    | DirectoryOrdered
    | DirectoryFound
    | TopicAdded
    | PartitionsPlaced
    | TopicConfigured
    | TopicRemoved
    | DeletionConfirmed
    | LeadershipClaimed
    | PartitionsOpened
    | PartitionOffline
    | PartitionOnline
    | TombstoneKept
    | TopicsRetired
)

_PREFIX = bytes([FORMAT])
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The bytes of one fact."""
    return _PREFIX + _ENCODER.encode(record)


def decode_record(data: bytes | bytearray | memoryview) -> Record:
    """The fact in these bytes, all of them.

    Raises:
        CorruptMetadataError: another format, an unknown fact, or bytes that are not a fact.
    """
    view = memoryview(data)
    if not view:
        raise CorruptMetadataError("a metadata record is empty")
    if view[0] != FORMAT:
        raise CorruptMetadataError(
            f"a metadata record has format {view[0]}, this version reads {FORMAT}: it is damaged, "
            "or was written by a newer version; use that one"
        )
    try:
        return _DECODER.decode(view[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptMetadataError(f"a metadata record cannot be read: {error}") from error
