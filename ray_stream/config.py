"""Every option a user may set: names, types, ranges, defaults, and what this version enforces.

Owns: validation, and errors that name the nearest valid option. Refuses: reading environment or
files, and storing a setting that nothing would act on.

Names are Kafka's in snake_case. Names ending in `_ms` are milliseconds, in `_bytes` bytes.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import msgspec
from msgspec import Meta

from ray_stream.errors import (
    ConfigNotEnforcedError,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    RayStreamError,
    UnknownOptionError,
)
from ray_stream.types import TopicPartition

MiB = 1024 * 1024
PARTITIONS_MAX = 10_000
TOPIC_NAME_MAX = 249
INTERNAL_PREFIX = "__"
CONSUMER_OFFSETS_TOPIC = "__consumer_offsets"
"""Where groups and committed offsets live: each partition's leader coordinates some groups."""
COORDINATOR_PARTITIONS = 16
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}\Z", re.ASCII)
_CLUSTER_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z", re.ASCII)

Milliseconds = Annotated[int, Meta(ge=0, le=2**53)]
PositiveMilliseconds = Annotated[int, Meta(ge=1, le=2**53)]
Serializer = Any
"""An object of `ray_stream.serializers`, a callable, or None for strict bytes."""

# What users of other clients type, and the name it has here.
_ALIASES = {
    "group_id": "group",
    "bootstrap_servers": "address",
    "batch_max_bytes": "batch_size",
    "max_in_flight_requests_per_connection": "max_in_flight",
    "retention": "retention_ms",
    "num_partitions": "partitions",
    "compression": "compression_type",
    "offset_reset": "auto_offset_reset",
}


class TopicConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topic's settings, all of them enforced."""

    durability: Literal["fsync", "replicated"] = "fsync"
    """What an acknowledgement stands for: stable storage, or Kafka's page cache."""
    segment_bytes: Annotated[int, Meta(ge=64 * 1024, le=2**31 - 1)] = 1024 * MiB
    """A segment is closed before it would grow beyond this."""
    segment_ms: PositiveMilliseconds = 7 * 24 * 3600 * 1000
    """A segment is closed when its first batch is older than this."""
    index_interval_bytes: Annotated[int, Meta(ge=512, le=2**30)] = 64 * 1024
    """One sparse index entry for at least so many log bytes."""
    max_message_bytes: Annotated[int, Meta(ge=1, le=128 * MiB)] = MiB
    """The largest record: key, value and headers, before compression."""
    max_batch_bytes: Annotated[int, Meta(ge=1024, le=192 * MiB)] = 64 * MiB
    """The largest batch, as it is sent; a larger one is refused whole."""
    message_timestamp_type: Literal["CreateTime", "LogAppendTime"] = "CreateTime"
    """Whose clock stamps the records: the producer's or the leader's."""
    min_insync_replicas: Annotated[int, Meta(ge=1, le=1)] = 1
    """Replicas that an `acks="all"` batch needs; with one replica only 1 is possible."""


TOPIC_NOT_ENFORCED: Mapping[str, object] = {
    "retention_ms": -1,
    "retention_bytes": -1,
    "local_retention_ms": -2,
    "local_retention_bytes": -2,
    "cleanup_policy": "delete",
    "delete_retention_ms": None,
    "min_compaction_lag_ms": None,
    "max_compaction_lag_ms": None,
    "min_cleanable_dirty_ratio": None,
    "file_delete_delay_ms": None,
    "compression_type": "producer",
    "unclean_leader_election_enable": False,
    "message_timestamp_before_max_ms": None,
    "message_timestamp_after_max_ms": None,
    "segment_jitter_ms": 0,
    "preallocate": False,
    "flush_messages": None,
    "flush_ms": None,
    "remote_storage_enable": False,
    "schema": None,
}
"""Known keys that this version does not act on, with the one value that is true anyway."""


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`start(config=…)`: settings of a whole cluster."""

    partition_actors_max: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Shared partition actors on a node, all of them always up; None: its CPU count, at least 2."""
    start_timeout_ms: PositiveMilliseconds = 120_000
    """How long `start` waits for the metadata log and every data directory."""
    lock_timeout_ms: Milliseconds = 10_000
    """How long a data directory's lock is waited for."""
    checkpoint_interval_ms: PositiveMilliseconds = 5_000
    """How often a partition that was written to gets a fresh checkpoint."""
    heartbeat_interval_ms: PositiveMilliseconds = 1_000
    """How often actors are asked for a sign of life by those who watch them."""
    actor_timeout_ms: PositiveMilliseconds = 5_000
    """An actor silent for so long is killed and replaced."""


class ProducerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`cluster.producer(…)`."""

    acks: Literal["all", 0, 1, -1] = "all"
    enable_idempotence: bool = True
    linger_ms: Annotated[int, Meta(ge=0, le=60_000)] = 5
    batch_size: Annotated[int, Meta(ge=1, le=32 * MiB)] = MiB
    buffer_memory: Annotated[int, Meta(ge=1, le=2**40)] = 64 * MiB
    max_block_ms: Milliseconds = 60_000
    max_in_flight: Annotated[int, Meta(ge=1, le=5)] = 5
    delivery_timeout_ms: PositiveMilliseconds = 120_000
    request_timeout_ms: PositiveMilliseconds = 30_000
    retry_backoff_ms: PositiveMilliseconds = 100
    retry_backoff_max_ms: PositiveMilliseconds = 1_000
    compression_type: Literal["none", "lz4", "zstd"] | None = None
    key_serializer: Serializer = None
    value_serializer: Serializer = None
    partitioner: Callable[..., int] | None = None
    transactional_id: str | None = None

    def __post_init__(self) -> None:
        if self.transactional_id is not None:
            raise ConfigNotEnforcedError(
                "transactional_id: transactions are not supported by this version; leave it out"
            )
        if self.acks in (0, 1) and self.enable_idempotence:
            # Kafka refuses the pair; a user who asks for less than `all` has said what they want.
            msgspec.structs.force_setattr(self, "enable_idempotence", False)
        if self.delivery_timeout_ms < self.linger_ms:
            raise InvalidConfigError(
                f"delivery_timeout_ms={self.delivery_timeout_ms} is below "
                f"linger_ms={self.linger_ms}: a record would expire before it is sent"
            )


class ConsumerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`cluster.consumer(…)`."""

    group: str | None = None
    auto_offset_reset: Literal["latest", "earliest", "error"] = "latest"
    enable_auto_commit: bool = True
    auto_commit_interval_ms: PositiveMilliseconds = 5_000
    isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed"
    fetch_min_bytes: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 1
    fetch_max_wait_ms: Annotated[int, Meta(ge=0, le=300_000)] = 500
    fetch_max_bytes: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 50 * MiB
    max_poll_records: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 500
    max_poll_interval_ms: PositiveMilliseconds = 300_000
    session_timeout_ms: PositiveMilliseconds = 45_000
    request_timeout_ms: PositiveMilliseconds = 30_000
    retry_backoff_ms: PositiveMilliseconds = 100
    group_instance_id: str | None = None
    client_rack: str | None = None
    key_deserializer: Serializer = None
    value_deserializer: Serializer = None
    on_assigned: Callable[[list[TopicPartition]], None] | None = None
    on_revoked: Callable[[list[TopicPartition]], None] | None = None
    until: Literal["end"] | None = None


class TopicOptions(TypedDict, total=False):
    """Keyword arguments of `create_topic` and `alter_topic`; see `TopicConfig`."""

    durability: Literal["fsync", "replicated"]
    segment_bytes: int
    segment_ms: int
    index_interval_bytes: int
    max_message_bytes: int
    max_batch_bytes: int
    message_timestamp_type: Literal["CreateTime", "LogAppendTime"]
    min_insync_replicas: int
    retention_ms: int
    retention_bytes: int
    cleanup_policy: str
    compression_type: str
    unclean_leader_election_enable: bool


class ProducerOptions(TypedDict, total=False):
    """Keyword arguments of `Cluster.producer`; see `ProducerConfig`."""

    acks: Literal["all", 0, 1, -1]
    enable_idempotence: bool
    linger_ms: int
    batch_size: int
    buffer_memory: int
    max_block_ms: int
    max_in_flight: int
    delivery_timeout_ms: int
    request_timeout_ms: int
    retry_backoff_ms: int
    retry_backoff_max_ms: int
    compression_type: Literal["none", "lz4", "zstd"] | None
    key_serializer: Serializer
    value_serializer: Serializer
    partitioner: Callable[..., int] | None
    transactional_id: str | None


class ConsumerOptions(TypedDict, total=False):
    """Keyword arguments of `Cluster.consumer`; see `ConsumerConfig`."""

    group: str | None
    auto_offset_reset: Literal["latest", "earliest", "error"]
    enable_auto_commit: bool
    auto_commit_interval_ms: int
    isolation_level: Literal["read_committed", "read_uncommitted"]
    fetch_min_bytes: int
    fetch_max_wait_ms: int
    fetch_max_bytes: int
    max_poll_records: int
    max_poll_interval_ms: int
    session_timeout_ms: int
    request_timeout_ms: int
    retry_backoff_ms: int
    group_instance_id: str | None
    client_rack: str | None
    key_deserializer: Serializer
    value_deserializer: Serializer
    on_assigned: Callable[[list[TopicPartition]], None] | None
    on_revoked: Callable[[list[TopicPartition]], None] | None
    until: Literal["end"] | None


ConfigT = TypeVar("ConfigT", bound=msgspec.Struct)


def validated(kind: type[ConfigT], options: Mapping[str, Any], what: str) -> ConfigT:
    """Build a config struct from what a user typed.

    Args:
        kind: the struct to build.
        options: names and values as typed.
        what: the thing configured, for the message: "producer", "topic 'flights'".

    Raises:
        UnknownOptionError: a name that does not exist; the nearest one is named.
        InvalidConfigError: a value of the wrong type or out of range.
    """
    fields = kind.__struct_fields__
    for name in options:
        if name not in fields:
            raise unknown_option(name, fields, what)
    for name, value in options.items():
        # A bool is an int to Python; to a user it is never a byte count.
        if isinstance(value, bool) and not isinstance(_default(kind, name), bool):
            raise InvalidConfigError(f"{name}={value!r} of {what}: a bool is not valid here")
    try:
        return msgspec.convert(dict(options), kind, strict=True)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, RayStreamError):
            raise error.__cause__ from None
        reason = str(error)
        name = next((n for n in options if f"$.{n}" in reason), "")
        value = f"{name}={options[name]!r} of {what}: " if name else f"{what}: "
        raise InvalidConfigError(f"{value}{reason.split(' - at ', maxsplit=1)[0]}") from error


def _default(kind: type[msgspec.Struct], name: str) -> object:
    return dict(zip(kind.__struct_fields__, kind.__struct_defaults__, strict=True))[name]


def unknown_option(name: str, valid: Iterable[str], what: str) -> UnknownOptionError:
    """The error for an option that does not exist, naming the nearest and all valid ones."""
    names = sorted(valid)
    alias = _ALIASES.get(name)
    near = [alias] if alias in names else difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UnknownOptionError(f"unknown option {name!r} of {what}{hint}; valid: {', '.join(names)}")


def topic_config(
    options: Mapping[str, Any], what: str, base: TopicConfig | None = None
) -> TopicConfig:
    """A topic's config from what a user typed, on top of `base`.

    Raises:
        UnknownOptionError, InvalidConfigError: as `validated`.
        ConfigNotEnforcedError: a known key with a value that nothing here would act on.
    """
    enforced = {}
    valid = (*TopicConfig.__struct_fields__, *TOPIC_NOT_ENFORCED)
    for name, value in options.items():
        if name in TopicConfig.__struct_fields__:
            enforced[name] = value
        elif name not in TOPIC_NOT_ENFORCED:
            raise unknown_option(name, valid, what)
        elif value != TOPIC_NOT_ENFORCED[name] or value is None:
            only = TOPIC_NOT_ENFORCED[name]
            hint = f"only {name}={only!r} is accepted" if only is not None else "leave it out"
            raise ConfigNotEnforcedError(
                f"{name}={value!r} of {what} is known but not enforced by this version, so it is "
                f"refused rather than stored and ignored; {hint}"
            )
    merged = {**(msgspec.structs.asdict(base) if base else {}), **enforced}
    config = validated(TopicConfig, merged, what)
    if config.max_batch_bytes < config.max_message_bytes:
        raise InvalidConfigError(
            f"max_batch_bytes={config.max_batch_bytes} of {what} is below "
            f"max_message_bytes={config.max_message_bytes}: no batch could hold such a record"
        )
    return config


def check_topic_name(name: object) -> str:
    """The name, when it is one; else InvalidTopicError saying why not."""
    if not isinstance(name, str):
        raise InvalidTopicError(f"a topic name is a str, not {type(name).__name__}")
    if not name or len(name) > TOPIC_NAME_MAX:
        raise InvalidTopicError(
            f"topic name of {len(name)} characters: 1 to {TOPIC_NAME_MAX} are valid"
        )
    if name in (".", "..") or not _TOPIC_NAME.match(name):
        raise InvalidTopicError(
            f"topic name {name!r}: only letters, digits, '.', '_' and '-' are valid, "
            "and neither '.' nor '..'"
        )
    if name.startswith(INTERNAL_PREFIX):
        raise InvalidTopicError(f"topic name {name!r}: names that start with '__' are internal")
    return name


def check_cluster_name(name: object) -> str:
    """The name, when it is one; else InvalidArgumentError."""
    if not isinstance(name, str) or not _CLUSTER_NAME.match(name):
        raise InvalidArgumentError(
            f"cluster name {name!r}: 1 to 64 letters, digits, '_' and '-' are valid"
        )
    return name


def check_partitions(partitions: object) -> int:
    """The count, when it is one; else InvalidPartitionsError."""
    if isinstance(partitions, bool) or not isinstance(partitions, int):
        raise InvalidPartitionsError(f"partitions={partitions!r}: an int is needed")
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise InvalidPartitionsError(
            f"partitions={partitions}: 1 to {PARTITIONS_MAX} are valid for one topic"
        )
    return partitions


def check_replication_factor(factor: object) -> int:
    """The factor, when this version can serve it; else InvalidReplicationFactorError."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise InvalidReplicationFactorError(f"replication_factor={factor!r}: 1 is valid")
    if factor > 1:
        raise InvalidReplicationFactorError(
            f"replication_factor={factor}: this version keeps one replica of a partition; "
            "replication comes later, 1 is valid"
        )
    return factor
