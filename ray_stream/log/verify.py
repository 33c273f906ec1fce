"""Checking a broker directory from outside, with nothing running: every byte that has a checksum.

Owns: walking identity, checkpoints, segments, indexes and snapshots, and naming what is wrong by
file, position and offsets. Refuses: changing anything, and judging what to do about it (`repair`).

The walk over batches is the reader's own (`log.frames`), so a range named here is the range that a
consumer's `CorruptRecordError` names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ray_stream.errors import CorruptMetadataError, RayStreamError, StorageError
from ray_stream.log import directory as directories
from ray_stream.log.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from ray_stream.log.frames import EPOCH_ANY, Damage, Frame, walk
from ray_stream.log.index import ENTRY_BYTES, IndexEntry
from ray_stream.log.layout import list_segments, read_snapshot, split_left
from ray_stream.log.offline import OFFLINE_NAME, read_marker
from ray_stream.log.segment import Segment, time_of
from ray_stream.log.storage import Storage
from ray_stream.types import NO_OFFSET, NO_TIMESTAMP


class FindingKind(StrEnum):
    """What is wrong, from bad to harmless."""

    CORRUPT = "corrupt"
    """Records that were durable are damaged or missing."""
    UNUSABLE = "unusable"
    """A file without which nothing is served: identity, checkpoint, or a newer version's."""
    OFFLINE = "offline"
    """A sync failed; `ray-stream repair` is needed."""
    TORN = "torn"
    """An unfinished end, as a crash leaves it; the next opening cuts it off."""
    HINT = "hint"
    """An index or snapshot that is wrong or missing; it is made again when it is needed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: how bad it is.
        path: the file.
        position: the byte in it.
        first_offset: the first record concerned; -1 where no records are.
        next_offset: the first record that is not concerned any more; -1 where no records are.
        message: what is wrong there.
    """

    kind: FindingKind
    path: str
    position: int
    first_offset: int
    next_offset: int
    message: str

    def __str__(self) -> str:
        records = f", records [{self.first_offset}, {self.next_offset})"
        return (
            f"{self.kind}: {self.path} at byte {self.position}"
            f"{records if self.first_offset != NO_OFFSET else ''}: {self.message}"
        )


def verify_directory(storage: Storage, root: str) -> Iterator[Finding]:
    """Check a broker directory: identity, metadata log, every partition."""
    name = f"{root}/{directories.IDENTITY_NAME}"
    try:
        directories.read_identity(storage, root)
    except RayStreamError as error:
        yield _unusable(name, error)
    if storage.is_directory(f"{root}/{directories.METADATA_NAME}"):
        yield from verify_log(storage, f"{root}/{directories.METADATA_NAME}")
    for topic_id, partition in directories.list_partitions(storage, root):
        yield from verify_log(storage, directories.partition_path(root, topic_id, partition))


def verify_log(storage: Storage, directory: str) -> Iterator[Finding]:
    """Check one log; it must not be open for writing."""
    marker = read_marker(storage, directory)
    if marker is not None:
        path = f"{directory}/{OFFLINE_NAME}"
        yield Finding(FindingKind.OFFLINE, path, 0, NO_OFFSET, NO_OFFSET, marker.reason)
    checkpoint = None
    try:
        checkpoint = read_checkpoint(storage, directory)
    except CorruptMetadataError as error:
        yield _unusable(f"{directory}/{CHECKPOINT_NAME}", error)
    try:
        segments = list_segments(storage, directory)
    except RayStreamError as error:
        yield _unusable(directory, error)
        return
    if checkpoint is not None:
        _, segments = split_left(segments, checkpoint.log_start)
    yield from _LogCheck(storage, directory, checkpoint).run(segments)


def _unusable(path: str, error: RayStreamError) -> Finding:
    return Finding(FindingKind.UNUSABLE, path, 0, NO_OFFSET, NO_OFFSET, str(error))


class _LogCheck:
    """One pass over a log."""

    def __init__(self, storage: Storage, directory: str, checkpoint: Checkpoint | None) -> None:
        self._storage = storage
        self._directory = directory
        self._checkpoint = checkpoint
        self._witnessed = checkpoint.durable.offset if checkpoint else 0
        self._epoch_max = checkpoint.leader_epoch if checkpoint else EPOCH_ANY
        self._damages: list[tuple[str, Damage]] = []
        self._hints: list[Finding] = []

    def run(self, segments: list[Segment]) -> Iterator[Finding]:
        """What is wrong with the batches first, then with the hints."""
        checkpoint = self._checkpoint
        if checkpoint is not None:
            first = segments[0].base_offset if segments else checkpoint.durable.offset
            if first > checkpoint.log_start:
                path = f"{self._directory}/{CHECKPOINT_NAME}"
                reason = f"the log starts at {checkpoint.log_start}, its first segment at {first}"
                missing = Damage(0, 0, checkpoint.log_start, first, reason)
                self._damages.append((path, missing))
        end, unread = 0, False
        for segment in segments:
            try:
                end = self._check(segment)
            except StorageError as error:
                unread = True
                yield _unusable(segment.path, error)
        if checkpoint is not None and end < checkpoint.durable.offset and not unread:
            self._check_end(segments, end, checkpoint)
        for path, damage in self._damages:
            yield self._judged(path, damage, end)
        yield from self._hints

    def _check(self, segment: Segment) -> int:
        """Look at all of a segment; returns where it ends."""
        index = _IndexCheck(segment, self._hints)
        due = segment.base_offset
        unresolved = False
        with segment.reading() as file:
            for found in walk(file, segment.whole(payloads=True, epoch_max=self._epoch_max)):
                if isinstance(found, Damage):
                    following = found.next_offset
                    unresolved = following == NO_OFFSET
                    if unresolved:
                        following = segment.sealed_at
                    self._damages.append((segment.path, found._replace(next_offset=following)))
                    due = following if following != NO_OFFSET else found.first_offset
                else:
                    self._witnessed = max(self._witnessed, found.header.durable_offset)
                    index.check(found)
                    due = found.header.next_offset
        if segment.sealed_at > due and not unresolved:
            reason = f"the segment ends at offset {due}, the next begins at {segment.sealed_at}"
            size = segment.size
            self._damages.append((segment.path, Damage(size, size, due, segment.sealed_at, reason)))
        index.finish()
        if segment.base_offset and read_snapshot(self._storage, segment) is None:
            self._hint(segment.path_of("snapshot"), "the producer snapshot is missing or damaged")
        return max(due, segment.sealed_at)

    def _check_end(self, segments: list[Segment], end: int, checkpoint: Checkpoint) -> None:
        """The log is shorter than what was synced of it."""
        if self._damages and self._damages[-1][1].next_offset == NO_OFFSET:
            path, last = self._damages.pop()
            last = last._replace(next_offset=checkpoint.durable.offset)
            self._damages.append((path, last))
            return
        path = segments[-1].path if segments else f"{self._directory}/{CHECKPOINT_NAME}"
        position = segments[-1].size if segments else 0
        reason = f"the log ends at offset {end}, {checkpoint.durable.offset} was synced"
        missing = Damage(position, position, end, checkpoint.durable.offset, reason)
        self._damages.append((path, missing))

    def _judged(self, path: str, damage: Damage, end: int) -> Finding:
        following = damage.next_offset if damage.next_offset != NO_OFFSET else end
        torn = damage.first_offset >= self._witnessed
        return Finding(
            FindingKind.TORN if torn else FindingKind.CORRUPT,
            path,
            damage.position,
            damage.first_offset,
            max(following, damage.first_offset),
            damage.reason,
        )

    def _hint(self, path: str, message: str) -> None:
        self._hints.append(Finding(FindingKind.HINT, path, 0, NO_OFFSET, NO_OFFSET, message))


class _IndexCheck:
    """A segment's index beside its batches, both in order."""

    def __init__(self, segment: Segment, findings: list[Finding]) -> None:
        self._segment = segment
        self._findings = findings
        self._entries = enumerate(segment.index.entries())
        self._time = NO_TIMESTAMP
        self._entry: IndexEntry | None = None
        self._number = -1
        self._next()

    def _next(self) -> None:
        """Go to the next entry that is not damaged."""
        self._entry = None
        for number, entry in self._entries:
            self._number = number
            if entry is not None:
                self._entry = entry
                return
            self._report("an index entry is damaged")

    def _report(self, message: str) -> None:
        self._findings.append(
            Finding(
                FindingKind.HINT,
                self._segment.index.path,
                self._number * ENTRY_BYTES,
                NO_OFFSET,
                NO_OFFSET,
                message,
            )
        )

    def check(self, frame: Frame) -> None:
        """The next batch."""
        while (entry := self._entry) is not None and entry.position <= frame.position:
            if (entry.position, entry.offset) != (frame.position, frame.header.base_offset):
                self._report(f"{entry} leads to no batch")
            elif entry.timestamp < self._time:
                self._report(f"{entry} hides a batch of time {self._time}")
            self._next()
        self._time = max(self._time, time_of(frame.header))

    def finish(self) -> None:
        """What is left must be the entry that closes a sealed segment."""
        segment = self._segment
        while (entry := self._entry) is not None:
            closing = (entry.offset, entry.position) == (segment.sealed_at, segment.size)
            if not closing or entry.timestamp < self._time:
                self._report(f"{entry} leads to no batch")
            self._next()
