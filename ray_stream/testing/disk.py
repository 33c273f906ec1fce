"""What a disk keeps when the power goes: cached and durable state of files and of names.

Owns: the operations that change a disk, what a sync makes durable, and every state that a power
loss may leave. Refuses: paths, locks, open files (`testing.memory`), choosing (callers do).

Stricter than any one file system, on purpose. Between two syncs each operation survives or not by
itself, in the order of issue among the survivors. A write may also be torn at sector boundaries, or
leave its length without its bytes (measured on ext4: a file synced at 100 bytes came back with 100
zeros more). A name is durable only after a sync of its directory, whatever was done to its file;
a rename is atomic. Syncing a file covers what was written to it before the sync was issued.

A failed sync marks the data clean and loses it: reads show the good bytes until the cache is
dropped, then zeros in their place, and no later sync brings them back.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import product
from typing import NamedTuple

SECTOR_BYTES = 512
ROOT = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file."""

    inode: int
    position: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file cut, or extended with zeros."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """A file's operations with a sequence number below `issued_at` became durable."""

    inode: int
    issued_at: int


@dataclass(frozen=True, slots=True)
class FailedSync:
    """A file's unsynced operations met these fates, and count as clean from now on."""

    inode: int
    fates: tuple["Fate", ...]


@dataclass(frozen=True, slots=True)
class FlipBit:
    """One bit changed at rest."""

    inode: int
    position: int
    bit: int


@dataclass(frozen=True, slots=True)
class Create:
    """A new name for a new, empty file."""

    directory: int
    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """A new name for a new, empty directory."""

    directory: int
    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A name changed, replacing the target if there was one."""

    directory: int
    name: str
    target: str
    inode: int


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name of a file or of an empty directory is gone."""

    directory: int
    name: str


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """The names inside became durable."""

    directory: int


FileOperation = Write | Truncate
NameOperation = Create | MakeDirectory | Rename | Unlink
Unsynced = FileOperation | NameOperation
Operation = Unsynced | Sync | FailedSync | FlipBit | SyncDirectory


class FateKind(Enum):
    """What a power loss made of one unsynced operation."""

    KEPT = "kept"
    DROPPED = "dropped"
    ZEROED = "zeroed"
    """The length has grown, the bytes beyond the old length are zeros."""
    HEAD = "head"
    """The sectors before `cut` are there, and the file ends with them."""
    TAIL = "tail"
    """The sectors from `cut` on are there, those before are not."""
    SCATTERED = "scattered"
    """Each sector is there or not, as the bits of `cut` say."""


class Fate(NamedTuple):
    """One operation's fate. `cut` counts sectors, or is a bit mask of them."""

    kind: FateKind
    cut: int = 0


KEPT = Fate(FateKind.KEPT)
DROPPED = Fate(FateKind.DROPPED)
ZEROED = Fate(FateKind.ZEROED)


def sectors(write: Write) -> int:
    """How many sectors of the disk a write touches."""
    end = write.position + len(write.data)
    return (end - 1) // SECTOR_BYTES - write.position // SECTOR_BYTES + 1 if write.data else 0


def fates(operation: Unsynced) -> list[Fate]:
    """The fates tried when all combinations are: tearing in the middle stands for each tear."""
    if not isinstance(operation, Write):
        return [DROPPED, KEPT]
    middle = sectors(operation) // 2
    torn = [Fate(FateKind.HEAD, middle), Fate(FateKind.TAIL, middle)] if middle else []
    return [DROPPED, KEPT, ZEROED, *torn]


def random_fate(operation: Unsynced, rng: random.Random) -> Fate:
    """Any fate; tears anywhere."""
    if not isinstance(operation, Write):
        return rng.choice((DROPPED, KEPT))
    count = sectors(operation)
    kinds = list(FateKind) if count > 1 else [FateKind.DROPPED, FateKind.KEPT, FateKind.ZEROED]
    kind = rng.choice(kinds)
    if kind in (FateKind.HEAD, FateKind.TAIL):
        return Fate(kind, rng.randrange(1, count))
    return Fate(kind, rng.getrandbits(count) if kind is FateKind.SCATTERED else 0)


def combinations(
    operations: Sequence[Unsynced], rng: random.Random, *, all_up_to: int, samples: int
) -> Iterator[tuple[Fate, ...]]:
    """Fates for each of `operations`: every combination when they are few, else some at random.

    Among the random ones are always: everything kept, everything dropped.
    """
    if len(operations) <= all_up_to:
        yield from product(*map(fates, operations))
        return
    yield (KEPT,) * len(operations)
    yield (DROPPED,) * len(operations)
    for _ in range(samples):
        yield tuple(random_fate(operation, rng) for operation in operations)


@dataclass(slots=True)
class FileState:
    """One file. `unsynced` holds (sequence number, operation)."""

    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, FileOperation]] = field(default_factory=list)
    has_lost: bool = False
    """A failed sync lost some of what `cached` still shows."""


@dataclass(slots=True)
class DirectoryState:
    """One directory: names to inode numbers."""

    cached: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    unsynced: list[tuple[int, NameOperation]] = field(default_factory=list)


class Disk:
    """Files and directories by inode number; `apply` is the only way to change them.

    `operations` records what was applied, so that any moment of a run can be lived through again.
    """

    def __init__(self, *, records: bool = True) -> None:
        """Args: records: whether `operations` is kept; long simulations do without."""
        self.operations: list[Operation] = []
        self.sequence = 0
        self.files: dict[int, FileState] = {}
        self.directories: dict[int, DirectoryState] = {ROOT: DirectoryState()}
        self.next_inode = ROOT + 1
        self._records = records

    def apply(self, operation: Operation) -> None:
        """Perform one operation, which must be possible."""
        match operation:
            case Write() | Truncate():
                file = self.files[operation.inode]
                _change(file.cached, operation, KEPT)
                file.unsynced.append((self.sequence, operation))
            case Sync():
                self._sync(self.files[operation.inode], operation.issued_at)
            case FailedSync():
                self._lose(operation)
            case FlipBit():
                _flip(self.files[operation.inode], operation)
            case SyncDirectory():
                directory = self.directories[operation.directory]
                directory.durable = dict(directory.cached)
                directory.unsynced.clear()
            case _:
                self._name(operation)
        self.sequence += 1
        if self._records:
            self.operations.append(operation)

    def _sync(self, file: FileState, issued_at: int) -> None:
        covered = [one for sequence, one in file.unsynced if sequence < issued_at]
        for operation in covered:
            _change(file.durable, operation, KEPT)
        del file.unsynced[: len(covered)]

    def _lose(self, failed: FailedSync) -> None:
        file = self.files[failed.inode]
        for (_, operation), fate in zip(file.unsynced, failed.fates, strict=True):
            _change(file.durable, operation, fate)
        file.unsynced.clear()
        file.has_lost = True
        if len(file.durable) < len(file.cached):
            # The length belongs to the inode, which did not fail: a later sync saves it.
            length = Truncate(failed.inode, len(file.cached))
            file.unsynced.append((self.sequence, length))

    def _name(self, operation: NameOperation) -> None:
        if isinstance(operation, Create):
            self.files[operation.inode] = FileState()
        elif isinstance(operation, MakeDirectory):
            self.directories[operation.inode] = DirectoryState()
        if isinstance(operation, Create | MakeDirectory):
            self.next_inode = max(self.next_inode, operation.inode + 1)
        directory = self.directories[operation.directory]
        _rename(directory.cached, operation)
        directory.unsynced.append((self.sequence, operation))

    def forget_clean_pages(self, inode: int) -> None:
        """Reads of the file come from the disk again, so what a failed sync lost is seen."""
        file = self.files[inode]
        if file.has_lost:
            file.cached = bytearray(file.durable)
            for _, operation in file.unsynced:
                _change(file.cached, operation, KEPT)
            file.has_lost = False

    def used_bytes(self) -> int:
        """Length of all files that have a name."""
        return sum(
            len(self.files[inode].cached)
            for directory in self.directories.values()
            for inode in directory.cached.values()
            if inode in self.files
        )

    def unsynced(self) -> list[Unsynced]:
        """What a power loss now would decide about, in the order of issue.

        Writes to a file that can have no name any more do not count.
        """
        nameable = self._nameable()
        found: list[tuple[int, Unsynced]] = []
        for inode, file in self.files.items():
            if inode in nameable:
                found += file.unsynced
        for inode, directory in self.directories.items():
            if inode in nameable:
                found += directory.unsynced
        found.sort(key=lambda entry: entry[0])
        return [operation for _, operation in found]

    def _nameable(self) -> Mapping[int, None]:
        """Inodes that are reachable after some power loss; a dict, for its order."""
        reached: dict[int, None] = {ROOT: None}
        waiting = [ROOT]
        while waiting:
            directory = self.directories.get(waiting.pop())
            if directory is None:
                continue
            named = list(directory.durable.values())
            named += [one.inode for _, one in directory.unsynced if not isinstance(one, Unlink)]
            waiting += [inode for inode in named if inode not in reached]
            reached |= dict.fromkeys(named)
        return reached

    def after_power_loss(self, chosen: Sequence[Fate]) -> "Disk":
        """The disk when the machine is up again.

        Args:
            chosen: one fate for each operation of `unsynced()`.
        """
        after = Disk(records=self._records)
        after.next_inode = self.next_inode
        nameable = self._nameable()
        after.files = {
            inode: FileState(durable=bytearray(file.durable))
            for inode, file in self.files.items()
            if inode in nameable
        }
        after.directories = {
            inode: DirectoryState(durable=dict(directory.durable))
            for inode, directory in self.directories.items()
            if inode in nameable
        }
        for operation, fate in zip(self.unsynced(), chosen, strict=True):
            if isinstance(operation, Write | Truncate):
                _change(after.files[operation.inode].durable, operation, fate)
            elif fate == KEPT:
                _rename(after.directories[operation.directory].durable, operation)
        for file in after.files.values():
            file.cached = bytearray(file.durable)
        for directory in after.directories.values():
            directory.cached = dict(directory.durable)
        return after

    def copy(self) -> "Disk":
        """The same disk at the same moment, going its own way from here."""
        twin = Disk(records=self._records)
        twin.next_inode, twin.sequence = self.next_inode, self.sequence
        twin.operations = list(self.operations)
        twin.files = {
            inode: FileState(
                bytearray(file.cached), bytearray(file.durable), list(file.unsynced), file.has_lost
            )
            for inode, file in self.files.items()
        }
        twin.directories = {
            inode: DirectoryState(
                dict(directory.cached), dict(directory.durable), list(directory.unsynced)
            )
            for inode, directory in self.directories.items()
        }
        return twin


def _change(content: bytearray, operation: FileOperation, fate: Fate) -> None:
    if isinstance(operation, Truncate):
        if fate == KEPT:
            _resize(content, operation.size)
        return
    position, data = operation.position, operation.data
    if fate.kind is FateKind.DROPPED or not data:
        return
    if fate.kind is FateKind.KEPT:
        if len(content) < position:
            _resize(content, position)
        content[position : position + len(data)] = data
        return
    end = position + len(data)
    first_sector = position // SECTOR_BYTES
    if fate.kind is FateKind.HEAD:
        end = (first_sector + fate.cut) * SECTOR_BYTES
    _resize(content, max(len(content), end))
    for index in range(sectors(operation)):
        if _sector_kept(fate, index):
            start = max(position, (first_sector + index) * SECTOR_BYTES)
            stop = min(end, (first_sector + index + 1) * SECTOR_BYTES)
            content[start:stop] = data[start - position : stop - position]


def _sector_kept(fate: Fate, index: int) -> bool:
    match fate.kind:
        case FateKind.HEAD:
            return index < fate.cut
        case FateKind.TAIL:
            return index >= fate.cut
        case FateKind.SCATTERED:
            return bool(fate.cut >> index & 1)
        case _:
            return False


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _flip(file: FileState, flip: FlipBit) -> None:
    for content in (file.cached, file.durable):
        if flip.position < len(content):
            content[flip.position] ^= 1 << flip.bit


def _rename(names: dict[str, int], operation: NameOperation) -> None:
    match operation:
        case Create() | MakeDirectory():
            names[operation.name] = operation.inode
        case Rename():
            names.pop(operation.name, None)
            names[operation.target] = operation.inode
        case Unlink():
            names.pop(operation.name, None)
