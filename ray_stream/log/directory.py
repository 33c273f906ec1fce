"""A broker directory: whose it is, and what lies in it.

Owns: `identity.json`, the names of partition directories, hints, strays, leftovers of unfinished
creations and deletions. Refuses: locks (`log.locks`), deciding who adopts what, deleting anything
that nobody asked to be deleted.

An identity is believed only whole: its checksum, its version, its fields. A directory of another
cluster, or one that two hosts see, is an error and never touched.
"""

from typing import Annotated

import crc32c
import msgspec

from ray_stream.config import TopicConfig
from ray_stream.errors import (
    CorruptMetadataError,
    DataDirSharedError,
    DataDirVersionError,
    InconsistentClusterIdError,
    RayStreamError,
)
from ray_stream.log import locks
from ray_stream.log.layout import DELETED_SUFFIX, DRAFT_SUFFIX, remove_tree
from ray_stream.log.storage import Storage, read_file, replace_file
from ray_stream.types import TopicIdPartition

FORMAT_VERSION = 1
IDENTITY_NAME = "identity.json"
HINT_NAME = "partition.json"
METADATA_NAME = "metadata"
STRAYS_NAME = "strays"

_TOPIC_ID_DIGITS = 32
_HEX = frozenset("0123456789abcdef")

Int32 = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a broker directory is."""

    cluster_id: Identifier
    broker_id: Int32
    """The broker for which it was made; any on the host may adopt it."""
    directory_id: Identifier
    host_id: Identifier
    controller_epoch: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] = -1
    """The highest that a broker here has seen."""
    metadata_directory_id: str = ""
    """The directory that holds the cluster's metadata log."""
    format_version: int = FORMAT_VERSION


class PartitionHint(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition was when its directory was made: for recovery by hand, never authority."""

    topic: str
    partition_count: int
    config: TopicConfig


class FoundDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """A broker directory that `scan` has found: an identity, or what is wrong with it."""

    path: str
    identity: Identity | None
    has_metadata: bool
    problem: RayStreamError | None = None


# --- identity ------------------------------------------------------------------------------------


def make_directory(storage: Storage, data_dir: str, identity: Identity) -> str:
    """Make a broker directory, durably; one that is there with the same identity is kept.

    Returns:
        Its path, `data_dir/<directory id>`.

    Raises:
        DataDirError, CorruptMetadataError: one with another identity, or a damaged one, is there.
        StorageError: the system refused.
    """
    path = f"{data_dir}/{identity.directory_id}"
    storage.make_directory(path)
    if storage.exists(f"{path}/{IDENTITY_NAME}"):
        there = read_identity(storage, path)
        check_identity(there, path, cluster_id=identity.cluster_id, host_id=identity.host_id)
        return path
    write_identity(storage, path, identity)
    return path


def write_identity(storage: Storage, path: str, identity: Identity) -> None:
    """Replace a directory's identity; durable when this returns."""
    content = msgspec.to_builtins(identity)
    content["crc32c"] = _checksum(content)
    replace_file(
        storage, f"{path}/{IDENTITY_NAME}", msgspec.json.format(msgspec.json.encode(content))
    )


def read_identity(storage: Storage, path: str) -> Identity:
    """Read and check a directory's identity.

    Raises:
        DataDirVersionError: written by a newer version.
        CorruptMetadataError: missing or damaged.
    """
    name = f"{path}/{IDENTITY_NAME}"
    try:
        content = msgspec.json.decode(read_file(storage, name), type=dict[str, object])
        checksum = content.pop("crc32c", None)
        version = content.get("format_version")
        if checksum != _checksum(content):
            raise CorruptMetadataError(
                f"{name} is damaged: its checksum does not match; nothing is guessed in its place"
            )
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise DataDirVersionError(
                f"{path} has format version {version}, this program reads up to {FORMAT_VERSION}: "
                "use the newer program that wrote it"
            )
        return msgspec.convert(content, Identity)
    except FileNotFoundError:
        raise CorruptMetadataError(f"{name} is missing: {path} is no broker directory") from None
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptMetadataError(
            f"{name} is damaged: {error}; nothing is guessed in its place"
        ) from error


def check_identity(identity: Identity, path: str, *, cluster_id: str, host_id: str) -> None:
    """Check that a directory is this cluster's, and this host's alone.

    Args:
        identity: as it was read.
        path: of the directory, for the message.
        cluster_id: what it must be; empty where no cluster is known yet.
        host_id: the host that reads it.

    Raises:
        InconsistentClusterIdError: it belongs to another cluster.
        DataDirSharedError: it was made on another host.
    """
    if cluster_id and identity.cluster_id != cluster_id:
        raise InconsistentClusterIdError(
            f"{path} belongs to cluster {identity.cluster_id}, this one is {cluster_id}: "
            "give each cluster a data_dir of its own"
        )
    if identity.host_id != host_id:
        raise DataDirSharedError(
            f"{path} belongs to host {identity.host_id} and is seen from {host_id}: it lies on a "
            "shared file system, where locks do not protect it; use a local disk on each node "
            "(after moving a disk to another machine, set RAY_STREAM_HOST_ID to the old host id)"
        )


def see_controller_epoch(storage: Storage, path: str, identity: Identity, epoch: int) -> Identity:
    """Record a controller epoch, if it is above all seen; durable when this returns."""
    if epoch <= identity.controller_epoch:
        return identity
    seen = msgspec.structs.replace(identity, controller_epoch=epoch)
    write_identity(storage, path, seen)
    return seen


def _checksum(content: dict[str, object]) -> int:
    return crc32c.crc32c(msgspec.json.encode(content, order="sorted"))


def scan(storage: Storage, data_dir: str) -> list[FoundDirectory]:
    """Every broker directory inside `data_dir`, sorted by name; what else lies there is ignored.

    One that cannot be used is returned with its problem, so that it is neither served nor
    mistaken for absent.
    """
    if not storage.is_directory(data_dir):
        return []
    found = []
    for name in storage.list_directory(data_dir):
        path = f"{data_dir}/{name}"
        if storage.is_directory(path) and storage.exists(f"{path}/{IDENTITY_NAME}"):
            try:
                found.append(_found(storage, path, name))
            except FileNotFoundError:
                continue  # it went while it was looked at
    return found


def _found(storage: Storage, path: str, name: str) -> FoundDirectory:
    has_metadata = storage.is_directory(f"{path}/{METADATA_NAME}")
    try:
        _refuse_journals(storage, path)
        identity = read_identity(storage, path)
        if identity.directory_id != name:
            raise CorruptMetadataError(
                f"{path} holds the identity of directory {identity.directory_id}: it was copied or "
                "renamed; give it its own name back"
            )
    except RayStreamError as problem:
        return FoundDirectory(path=path, identity=None, has_metadata=has_metadata, problem=problem)
    return FoundDirectory(path=path, identity=identity, has_metadata=has_metadata)


def _refuse_journals(storage: Storage, path: str) -> None:
    for name in storage.list_directory(path):
        if name.endswith(".wal"):
            raise DataDirVersionError(
                f"{path}/{name} is a commit journal, which this version does not read: "
                "use the newer program that wrote it"
            )


# --- partitions ----------------------------------------------------------------------------------


def partition_name(topic_id: str, partition: int) -> str:
    """`<topic id>-<partition>`."""
    return f"{topic_id}-{partition}"


def partition_path(root: str, topic_id: str, partition: int) -> str:
    """A partition's directory in a broker directory."""
    return f"{root}/{partition_name(topic_id, partition)}"


def parse_partition_name(name: str) -> TopicIdPartition | None:
    """None: not the name of a partition's directory."""
    topic_id, dash, digits = name.rpartition("-")
    if not dash or len(topic_id) != _TOPIC_ID_DIGITS or not _HEX.issuperset(topic_id):
        return None
    if not (digits.isascii() and digits.isdecimal()) or str(int(digits)) != digits:
        return None
    return TopicIdPartition(topic_id, int(digits))


def list_partitions(storage: Storage, root: str) -> list[TopicIdPartition]:
    """The partitions whose directories are in a broker directory."""
    parsed = map(parse_partition_name, storage.list_directory(root))
    return [one for one in parsed if one is not None]


def write_partition_hint(
    storage: Storage, path: str, topic: str, partition_count: int, config: TopicConfig
) -> None:
    """Write what a partition is, for recovery by hand. Not synced: it is a hint."""
    hint = PartitionHint(topic=topic, partition_count=partition_count, config=config)
    file = storage.open(f"{path}/{HINT_NAME}", create=True)
    try:
        file.truncate(0)
        file.write([msgspec.json.format(msgspec.json.encode(hint))], 0)
    finally:
        file.close()


def read_partition_hint(storage: Storage, path: str) -> PartitionHint | None:
    """None: there is none, or it cannot be read."""
    try:
        return msgspec.json.decode(read_file(storage, f"{path}/{HINT_NAME}"), type=PartitionHint)
    except (FileNotFoundError, msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def quarantine_stray(storage: Storage, root: str, name: str) -> str:
    """Put a directory aside that no topic and no tombstone explains. Nothing is deleted.

    Returns:
        Its new path, in `strays/`.
    """
    strays = f"{root}/{STRAYS_NAME}"
    storage.make_directory(strays)
    target = f"{strays}/{name}"
    number = 0
    while storage.exists(target):
        number += 1
        target = f"{strays}/{name}.{number}"
    storage.rename(f"{root}/{name}", target)
    storage.sync_directory(strays)
    storage.sync_directory(root)
    return target


def finish_deletes(storage: Storage, root: str) -> list[str]:
    """Remove what unfinished creations and deletions of partitions left behind.

    Returns:
        The names removed.
    """
    removed = []
    for name in storage.list_directory(root):
        for suffix in (DELETED_SUFFIX, DRAFT_SUFFIX):
            one = parse_partition_name(name.removesuffix(suffix)) if name.endswith(suffix) else None
            if one is not None and _removed(storage, root, name, locks.partition_position(*one)):
                removed.append(name)
    return removed


def _removed(storage: Storage, root: str, name: str, position: int) -> bool:
    """Whether that leftover went; it is in nobody's way, and tried again with the next look."""
    lock = locks.try_lock(storage, root, position)
    if lock is None:
        return False  # a living host is at it
    try:
        remove_tree(storage, f"{root}/{name}")
    except RayStreamError:
        return False
    finally:
        lock.release()
    return True
