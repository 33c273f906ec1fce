"""A `Storage` in memory that forgets what was not synced, and fails when told to.

Owns: paths, open files, locks by process, injected faults. Refuses: deciding what survives
(`testing.disk`). It shows the same results as `log.storage.DiskStorage` for the same calls; a test
drives both side by side.

Three endings, each survivable by a log that keeps its rules:

* `kill()`: one process is dead, its locks are free, everything written is there.
* `killed()`: a copy of the storage as every process of the machine dies.
* `crashed(...)`, `crash_states(...)`: copies of the storage after the power went.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from ray_stream.errors import StorageError, StorageFullError
from ray_stream.log.storage import Buffer, File, Lock
from ray_stream.testing.disk import (
    KEPT,
    ROOT,
    ZEROED,
    Create,
    DirectoryState,
    Disk,
    FailedSync,
    Fate,
    FlipBit,
    MakeDirectory,
    Rename,
    Sync,
    SyncDirectory,
    Truncate,
    Unlink,
    Write,
    combinations,
    random_fate,
)

UNLIMITED_BYTES = 2**50


@dataclass(slots=True)
class _Planned:
    """A call that will fail: the n-th from now whose path contains `path_part`."""

    calls_left: int
    path_part: str

    def comes_due(self, path: str) -> bool:
        if self.path_part not in path:
            return False
        self.calls_left -= 1
        return self.calls_left == 0


@dataclass(slots=True)
class Faults:
    """What goes wrong on one machine. Nothing does, until told."""

    capacity_bytes: int | None = None
    """All files together may have so many bytes; None: any number."""
    unreadable: str | None = None
    """Reads of paths that contain this fail."""
    lost_by_failed_sync: random.Random | None = None
    """Draws the fate of each write that a failed sync loses; None: zeros in its place."""
    _syncs: list[_Planned] = field(default_factory=list)
    _writes: list[_Planned] = field(default_factory=list)

    def fail_sync(self, nth: int = 1, path_part: str = "") -> None:
        """The n-th sync from now, of a file or directory, loses what it should have saved."""
        self._syncs.append(_Planned(nth, path_part))

    def fail_write(self, nth: int = 1, path_part: str = "") -> None:
        """The n-th write from now is refused; the file keeps its old length."""
        self._writes.append(_Planned(nth, path_part))

    def heal(self) -> None:
        """Nothing planned fails any more, and there is space. What was lost stays lost."""
        self.capacity_bytes = self.unreadable = None
        self._syncs.clear()
        self._writes.clear()

    def sync_fails(self, path: str) -> bool:
        """Count a sync of `path`; say whether it is one to fail."""
        return sum(planned.comes_due(path) for planned in self._syncs) > 0

    def write_fails(self, path: str) -> bool:
        """Count a write to `path`; say whether it is one to fail."""
        return sum(planned.comes_due(path) for planned in self._writes) > 0


class _Machine:
    """What the processes of one machine share."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.faults = Faults()
        self.locks: dict[tuple[int, int], _MemoryLock] = {}
        self.syncs_issued_at: int | None = None


class MemoryStorage:
    """One process's view of one machine's disk. Satisfies `log.storage.Storage`."""

    def __init__(self, disk: Disk | None = None) -> None:
        """Args: disk: what is there already; none: an empty one that records its operations."""
        self._machine = _Machine(disk or Disk())
        self._dead = False

    # --- the machine, as a test sees it ----------------------------------------------------------

    @property
    def disk(self) -> Disk:
        """The machine's disk."""
        return self._machine.disk

    @property
    def faults(self) -> Faults:
        """What goes wrong on this machine."""
        return self._machine.faults

    def another_process(self) -> Self:
        """A second process on the same machine: same files, locks of its own."""
        twin = type(self)(self.disk)
        twin._machine = self._machine  # noqa: SLF001 - its own class
        return twin

    def kill(self) -> None:
        """This process is dead: its locks are free, and it must touch nothing any more."""
        self._dead = True
        locks = self._machine.locks
        for place in [place for place, lock in locks.items() if lock.owner is self]:
            del locks[place]

    def killed(self) -> Self:
        """A copy of the machine after all its processes died: all that was written is kept."""
        return type(self)(self.disk.copy())

    def crashed(self, chosen: Sequence[Fate] | random.Random) -> Self:
        """A copy of the machine after a power loss.

        Args:
            chosen: one fate for each of `disk.unsynced()`, or who draws them.
        """
        if isinstance(chosen, random.Random):
            chosen = [random_fate(operation, chosen) for operation in self.disk.unsynced()]
        return type(self)(self.disk.after_power_loss(chosen))

    def crash_states(
        self, rng: random.Random, *, all_up_to: int = 4, samples: int = 8
    ) -> Iterator[Self]:
        """Copies of the machine after power losses at this moment.

        Args:
            rng: draws the samples.
            all_up_to: with so many unsynced operations every combination of fates is tried.
            samples: with more, so many are drawn, besides "all kept" and "all dropped".
        """
        for chosen in combinations(self.disk.unsynced(), rng, all_up_to=all_up_to, samples=samples):
            yield self.crashed(chosen)

    @contextmanager
    def syncs_issued_at(self, sequence: int) -> Iterator[None]:
        """Syncs inside the block were issued at that `disk.sequence`: later writes stay unsynced.

        A sync that runs beside the writer covers no more than that.
        """
        self._machine.syncs_issued_at = sequence
        try:
            yield
        finally:
            self._machine.syncs_issued_at = None

    def flip_bit(self, path: str, position: int, bit: int = 0) -> None:
        """Damage one bit at rest."""
        self.disk.apply(FlipBit(self._file_at(path), position, bit))

    # --- Storage ---------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing."""
        return MemoryFile(self, path, self._opened(path, create=create), writable=True)

    def open_for_reading(self, path: str) -> File:
        """Open for reading only."""
        return MemoryFile(self, path, self._opened(path, create=False), writable=False)

    def exists(self, path: str) -> bool:
        """Whether the name is there."""
        return self._inode(path) is not None

    def is_directory(self, path: str) -> bool:
        """Whether a directory of that name is there."""
        return self._inode(path) in self.disk.directories

    def list_directory(self, path: str) -> list[str]:
        """Names inside, sorted."""
        self._assert_alive()
        inode = self._inode(path, "list")
        if inode is None:
            raise FileNotFoundError(path)
        if inode not in self.disk.directories:
            raise StorageError(f"list of {path} failed: it is not a directory")
        return sorted(self.disk.directories[inode].cached)

    def make_directory(self, path: str) -> None:
        """Make it and its missing parents."""
        missing = []
        while not self.is_directory(path):
            missing.append(path)
            path = _parent(path)
        for name in reversed(missing):
            if self.exists(name):
                raise StorageError(f"{name} is a file, a directory is needed there")
            inode, _ = self._directory_of(name, "make directory")
            self._apply_name(MakeDirectory(inode, _last(name), self.disk.next_inode))
            self.sync_directory(_parent(name))

    def sync_directory(self, path: str) -> None:
        """Make the names inside durable."""
        self._assert_alive()
        inode = self._inode(path)
        if inode is None or inode not in self.disk.directories:
            raise StorageError(f"sync of directory {path} failed: there is no such directory")
        if self.faults.sync_fails(path):
            raise StorageError(f"sync of directory {path} failed: injected")
        self.disk.apply(SyncDirectory(inode))

    def rename(self, source: str, target: str) -> None:
        """Replace `target` atomically; within one directory, other renames are not modelled."""
        inode, directory = self._directory_of(source, "rename")
        if self._directory_of(target, "rename")[0] != inode:
            raise StorageError(f"rename of {source} failed: {target} is in another directory")
        moved, replaced = directory.cached.get(_last(source)), directory.cached.get(_last(target))
        if moved is None:
            raise StorageError(f"rename of {source} failed: there is no such file")
        if moved == replaced:
            return
        if replaced is not None:
            self._check_replaceable(source, moved, target, replaced)
        self._apply_name(Rename(inode, _last(source), _last(target), moved))

    def unlink(self, path: str) -> None:
        """Remove a file."""
        if self.is_directory(path):
            raise StorageError(f"unlink of {path} failed: it is a directory")
        if self._inode(path, "unlink") is not None:
            self._apply_name(Unlink(self._directory_of(path, "unlink")[0], _last(path)))

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        inode = self._inode(path, "remove directory")
        if inode is None:
            return
        inside = self.disk.directories.get(inode)
        if inside is None or inside.cached:
            raise StorageError(f"remove directory of {path} failed: a file, or not empty")
        self._apply_name(Unlink(self._directory_of(path, "remove directory")[0], _last(path)))

    def lock(self, path: str, position: int) -> Lock | None:
        """Take the exclusive lock on one byte of a file."""
        try:
            inode = self._opened(path, create=True)
        except FileNotFoundError as error:
            raise StorageError(f"open of {path} failed: its directory is missing") from error
        if (inode, position) in self._machine.locks:
            return None
        lock = _MemoryLock(self, (inode, position))
        self._machine.locks[inode, position] = lock
        return lock

    def free_bytes(self, path: str) -> int:
        """Bytes that may still be written; `path` has no say."""
        del path
        capacity = self.faults.capacity_bytes
        if capacity is None:
            return UNLIMITED_BYTES
        return max(0, capacity - self.disk.used_bytes())

    # --- paths -----------------------------------------------------------------------------------

    def _assert_alive(self) -> None:
        assert not self._dead, "a killed process went on using its storage"

    def _inode(self, path: str, action: str = "") -> int | None:
        """The inode of that name, None when missing; a file on the way stops an `action`."""
        inode: int = ROOT
        for part in path.split("/"):
            if not part:
                continue
            directory = self.disk.directories.get(inode)
            if directory is None and action:
                raise StorageError(f"{action} of {path} failed: there is a file on the way")
            if directory is None or part not in directory.cached:
                return None
            inode = directory.cached[part]
        return inode

    def _directory_of(self, path: str, action: str) -> tuple[int, DirectoryState]:
        inode = self._inode(_parent(path))
        if inode is None or inode not in self.disk.directories:
            raise StorageError(f"{action} of {path} failed: its directory is missing")
        return inode, self.disk.directories[inode]

    def _file_at(self, path: str) -> int:
        inode = self._inode(path, "open")
        if inode is None:
            raise FileNotFoundError(path)
        if inode not in self.disk.files:
            raise StorageError(f"open of {path} failed: it is a directory")
        return inode

    def _opened(self, path: str, *, create: bool) -> int:
        self._assert_alive()
        if not create or self._inode(path, "open") is not None:
            return self._file_at(path)
        directory = self._inode(_parent(path))
        if directory is None:
            raise StorageError(f"open of {path} failed: its directory is missing")
        if not self.free_bytes(path):
            raise _full("open", path)
        created = self.disk.next_inode
        self._apply_name(Create(directory, _last(path), created))
        return created

    def _check_replaceable(self, source: str, moved: int, target: str, replaced: int) -> None:
        inside = self.disk.directories.get(replaced)
        if (moved in self.disk.directories) != (inside is not None):
            raise StorageError(f"rename of {source} failed: {target} is of another kind")
        if inside is not None and inside.cached:
            raise StorageError(f"rename of {source} failed: {target} is not empty")

    def _apply_name(self, operation: Create | MakeDirectory | Rename | Unlink) -> None:
        self._assert_alive()
        self.disk.apply(operation)


class MemoryFile:
    """An open file of a `MemoryStorage`."""

    def __init__(self, storage: MemoryStorage, path: str, inode: int, *, writable: bool) -> None:
        """Args: inode: what is open; it stays so when the name goes."""
        self.path = path
        self._storage = storage
        self._inode = inode
        self._writable = writable
        self._closed = False

    def size(self) -> int:
        """Bytes in the file."""
        return len(self._content())

    def read(self, length: int, position: int) -> bytes:
        """Up to `length` bytes from `position`."""
        content = self._content()
        unreadable = self._storage.faults.unreadable
        if unreadable is not None and unreadable in self.path:
            raise StorageError(f"read of {self.path} failed: injected")
        if length < 0 or position < 0:
            raise StorageError(f"read of {self.path} failed: Invalid argument")
        return bytes(memoryview(content)[position : position + length])

    def read_into(self, buffer: memoryview, position: int) -> int:
        """Fill the buffer, as far as there are bytes."""
        data = self.read(len(buffer), position)
        buffer[: len(data)] = data
        return len(data)

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        """All of the buffers, or none."""
        old = len(self._content(changing=bool(buffers)))
        data = b"".join(buffers)
        if not data:
            return
        if self._storage.faults.write_fails(self.path):
            raise StorageError(f"write of {self.path} failed: injected")
        if self._storage.faults.capacity_bytes is not None:
            self._write_what_fits(data, position, old)
        self._storage.disk.apply(Write(self._inode, position, data))

    def _write_what_fits(self, data: bytes, position: int, old: int) -> None:
        """A full disk takes the first part of a write; it is cut off again."""
        missing = position + len(data) - old - self._storage.free_bytes(self.path)
        if missing <= 0:
            return
        if position == old and missing < len(data):
            self._storage.disk.apply(Write(self._inode, position, data[:-missing]))
            self._storage.disk.apply(Truncate(self._inode, old))
        raise _full("write", self.path)

    def truncate(self, size: int) -> None:
        """Cut or extend to `size` bytes."""
        grows_by = size - len(self._content(changing=True))
        if grows_by > 0 and grows_by > self._storage.free_bytes(self.path):
            raise _full("truncate", self.path)
        self._storage.disk.apply(Truncate(self._inode, size))

    def sync(self) -> None:
        """Everything written before is durable, or clean and lost."""
        self._content()
        disk, faults = self._storage.disk, self._storage.faults
        if faults.sync_fails(self.path):
            unsynced = [operation for _, operation in disk.files[self._inode].unsynced]
            rng = faults.lost_by_failed_sync
            lost = tuple(
                random_fate(one, rng) if rng else (ZEROED if isinstance(one, Write) else KEPT)
                for one in unsynced
            )
            disk.apply(FailedSync(self._inode, lost))
            raise StorageError(f"sync of {self.path} failed: injected")
        issued_at = self._storage._machine.syncs_issued_at  # noqa: SLF001 - its own machine
        disk.apply(Sync(self._inode, disk.sequence if issued_at is None else issued_at))

    def drop_cache(self) -> None:
        """Reads come from the disk again."""
        self._content()
        self._storage.disk.forget_clean_pages(self._inode)

    def close(self) -> None:
        """A second call does nothing."""
        self._closed = True

    def _content(self, *, changing: bool = False) -> bytearray:
        self._storage._assert_alive()  # noqa: SLF001 - its own storage
        if self._closed:
            raise StorageError(f"{self.path} is closed")
        if changing and not self._writable:
            raise StorageError(f"{self.path} was opened for reading only")
        return self._storage.disk.files[self._inode].cached


class _MemoryLock:
    """Belongs to one open file of one process: no second one beside it, not even by its owner."""

    def __init__(self, owner: MemoryStorage, place: tuple[int, int]) -> None:
        self.owner = owner
        self._place = place

    def release(self) -> None:
        locks = self.owner._machine.locks  # noqa: SLF001 - its own machine
        if locks.get(self._place) is self:
            del locks[self._place]


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or "/"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _full(action: str, path: str) -> StorageFullError:
    return StorageFullError(
        f"{action} of {path} failed: No space left on device; free some space, appends go on by "
        "themselves then"
    )
