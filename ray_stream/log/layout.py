"""Which files in a partition's directory make up its log.

Owns: making and removing a log's directory, listing its segments, and the producer snapshot beside
each. Refuses: looking into segments.
"""

import contextlib
from itertools import pairwise

from ray_stream.errors import CorruptBatchError, DataDirVersionError, StorageError
from ray_stream.log.checkpoint import Checkpoint, Place, write_checkpoint
from ray_stream.log.producers import Producers
from ray_stream.log.segment import Segment, SegmentName
from ray_stream.log.storage import Storage, read_file
from ray_stream.types import NO_OFFSET

DRAFT_SUFFIX = ".new"
"""A directory that is being made: nothing in it was ever acknowledged."""
DELETED_SUFFIX = ".deleted"
"""A directory that is being removed."""


def create_log(storage: Storage, directory: str, *, boot_id: str) -> None:
    """Make an empty log. It appears under its name complete and durable, or not at all.

    Raises:
        StorageError: the directory exists already, or the system refused.
    """
    if storage.exists(directory):
        raise StorageError(
            f"{directory} exists already: open the log that is there, or remove it first"
        )
    draft = f"{directory}{DRAFT_SUFFIX}"
    storage.make_directory(draft)
    for name in storage.list_directory(draft):
        storage.unlink(f"{draft}/{name}")
    segment = Segment(storage, draft, 0)
    segment.create()
    segment.close()
    write_checkpoint(storage, draft, Checkpoint(0, Place(0, 0, 0), boot_id=boot_id, clean=True))
    storage.rename(draft, directory)
    storage.sync_directory(parent_of(directory))


def delete_log(storage: Storage, directory: str) -> None:
    """Remove a log and all its files; one that is gone already is no error.

    The rename makes the deletion durable at once; what a crash leaves behind it,
    `directory.finish_deletes` removes.
    """
    doomed = f"{directory}{DELETED_SUFFIX}"
    if storage.is_directory(directory):
        if storage.is_directory(doomed):
            remove_tree(storage, doomed)
        storage.rename(directory, doomed)
        storage.sync_directory(parent_of(directory))
    if storage.is_directory(doomed):
        remove_tree(storage, doomed)


def remove_tree(storage: Storage, directory: str) -> None:
    """Remove a directory of plain files."""
    with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
        for name in storage.list_directory(directory):
            storage.unlink(f"{directory}/{name}")
    storage.remove_directory(directory)


def parent_of(path: str) -> str:
    """The directory that holds a path's last name."""
    return path.rpartition("/")[0] or "/"


def list_segments(storage: Storage, directory: str) -> list[Segment]:
    """The segments in a directory by base offset, the highest generation of each.

    Raises:
        DataDirVersionError: a newer version's commit journal is there.
    """
    found: dict[int, int] = {}
    for name in storage.list_directory(directory):
        if name.endswith(".wal"):
            raise DataDirVersionError(
                f"{directory}/{name} is a commit journal, which this version does not read: "
                "use the newer program that wrote it"
            )
        parsed = SegmentName.parse(name)
        if parsed is not None and parsed.suffix == "log":
            found[parsed.base_offset] = max(parsed.generation, found.get(parsed.base_offset, 0))
    segments = [Segment(storage, directory, base, found[base]) for base in sorted(found)]
    for segment, following in pairwise(segments):
        segment.sealed_at = following.base_offset
    return segments


def split_left(segments: list[Segment], log_start: int) -> tuple[list[Segment], list[Segment]]:
    """The segments that ended at or below the log start, and the others."""
    kept = next(
        (
            number
            for number, segment in enumerate(segments)
            if segment.sealed_at == NO_OFFSET or segment.sealed_at > log_start
        ),
        len(segments),
    )
    return segments[:kept], segments[kept:]


def read_snapshot(storage: Storage, segment: Segment) -> Producers | None:
    """The producer state at a segment's base; None when it is missing or damaged."""
    try:
        raw = read_file(storage, segment.path_of("snapshot"))
        return Producers.decode(raw, segment.base_offset)
    except (FileNotFoundError, CorruptBatchError):
        return None


def write_snapshot(
    storage: Storage, segment: Segment, producers: Producers, *, sync: bool = False
) -> None:
    """Write the producer state at a segment's base.

    A lost one is made again from the segments in front of it, while those are in the log: so it is
    synced together with its segment's name.
    """
    file = storage.open(segment.path_of("snapshot"), create=True)
    try:
        file.truncate(0)
        file.write([producers.encode(segment.base_offset)], 0)
        if sync:
            file.sync()
    finally:
        file.close()
