"""Files and directories behind one seam: the only `os` calls of the log.

Owns: what a write, a sync, a rename and a lock mean, for a real disk. Refuses: knowing what the
bytes are.

`testing.memory.MemoryStorage` is the other implementation: it forgets what was not synced. The
rules that both keep:

* A write is visible to every reader at once and durable only after `File.sync()`.
* A created or renamed name is durable only after `Storage.sync_directory()` of its parent.
* A write that fails part-way leaves the file at its old length (durable after `sync`), or raises
  `StorageError` saying it could not.
* Locks are open-file-description locks on byte ranges: they belong to the open file, survive the
  closing of other descriptors of it, and end with the process (STORAGE section 2). All locks that a
  storage has on one file share one descriptor.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ray_stream.errors import StorageError, StorageFullError

Buffer = bytes | bytearray | memoryview

# `struct flock` of 64-bit Linux: type, whence, start, length, pid (which must be 0 for OFD locks).
_FLOCK = struct.Struct("hhqqi4x")
_F_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)
_BUFFERS_PER_WRITE = 1024
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TOO_MANY_OPEN = {errno.EMFILE, errno.ENFILE}


class File(Protocol):
    """An open file, read and written by position."""

    @property
    def path(self) -> str:
        """The name that it was opened by."""
        ...

    def size(self) -> int:
        """Bytes in the file, unsynced ones included."""
        ...

    def read(self, length: int, position: int) -> bytes:
        """Up to `length` bytes from `position`; fewer only at the end of the file."""
        ...

    def read_into(self, buffer: memoryview, position: int) -> int:
        """Fill the buffer from `position`; how many bytes came: fewer only at the end."""
        ...

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        """Write the buffers one behind the other, all of them or none.

        Raises:
            StorageFullError: no space; the file has its old length again.
            StorageError: anything else the system refused.
        """
        ...

    def truncate(self, size: int) -> None:
        """Cut (or extend with zeros) to `size` bytes; durable after `sync`."""
        ...

    def sync(self) -> None:
        """Make everything written before this call durable; raises `StorageError`."""
        ...

    def drop_cache(self) -> None:
        """Ask that clean cached pages be forgotten, so that the next read comes from the disk."""
        ...

    def close(self) -> None:
        """Release the descriptor; a second call does nothing."""
        ...


class Lock(Protocol):
    """A held byte-range lock."""

    def release(self) -> None:
        """Give it up; a second call does nothing."""
        ...


class Storage(Protocol):
    """A file system, as far as a log needs one. Paths are absolute strings."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing; `create` makes a missing file, else `FileNotFoundError`."""
        ...

    def open_for_reading(self, path: str) -> File:
        """Open for reading only; `FileNotFoundError` when missing."""
        ...

    def exists(self, path: str) -> bool:
        """Whether a file or directory of that name is there."""
        ...

    def is_directory(self, path: str) -> bool:
        """Whether a directory of that name is there."""
        ...

    def list_directory(self, path: str) -> list[str]:
        """Names inside, sorted; `FileNotFoundError` when missing."""
        ...

    def make_directory(self, path: str) -> None:
        """Make it and its missing parents, syncing each parent that got a new name."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make the names inside durable."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Replace `target` atomically; durable after `sync_directory`."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a file; a missing one is no error."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory; a missing one is no error."""
        ...

    def lock(self, path: str, position: int) -> Lock | None:
        """Take the exclusive lock on one byte of a file, made when missing; None when held."""
        ...

    def free_bytes(self, path: str) -> int:
        """Bytes that this user may still write below `path`."""
        ...


def read_file(storage: Storage, path: str) -> bytes:
    """A whole small file; `FileNotFoundError` when missing."""
    file = storage.open_for_reading(path)
    try:
        return file.read(file.size(), 0)
    finally:
        file.close()


def replace_file(storage: Storage, path: str, data: Buffer) -> None:
    """Replace a small file so that a crash leaves the old one or the new one, never a mixture.

    Temporary file, sync, rename, sync of the directory: when this returns the new content is
    durable.
    """
    temporary = f"{path}.tmp"
    file = storage.open(temporary, create=True)
    try:
        file.truncate(0)
        file.write([data], 0)
        file.sync()
    finally:
        file.close()
    storage.rename(temporary, path)
    storage.sync_directory(path.rpartition("/")[0] or "/")


class DiskFile:
    """A raw descriptor: no buffer of Python's stands between a write and the kernel."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.path = path

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._descriptor).st_size

    def read(self, length: int, position: int) -> bytes:
        """Up to `length` bytes from `position`."""
        try:
            data = os.pread(self._descriptor, length, position)
            if len(data) == length or not data:
                return data
            parts = [data]
            got = len(data)
            while got < length and (
                data := os.pread(self._descriptor, length - got, position + got)
            ):
                parts.append(data)
                got += len(data)
            return b"".join(parts)
        except OSError as error:
            raise _translated(error, "read", self.path) from error

    def read_into(self, buffer: memoryview, position: int) -> int:
        """Fill the buffer, as far as there are bytes."""
        got = 0
        try:
            while got < len(buffer) and (
                count := os.preadv(self._descriptor, [buffer[got:]], position + got)
            ):
                got += count
        except OSError as error:
            raise _translated(error, "read", self.path) from error
        return got

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        """All of the buffers, or none."""
        try:
            self._write_all(buffers, position)
        except OSError as error:
            try:
                if os.fstat(self._descriptor).st_size > position:
                    os.ftruncate(self._descriptor, position)
            except OSError as second:
                raise StorageError(
                    f"a write to {self.path} failed part-way ({error.strerror}) and could not be "
                    f"taken back ({second.strerror}); the file is not used any more"
                ) from error
            raise _translated(error, "write", self.path) from error

    def _write_all(self, buffers: Sequence[Buffer], position: int) -> None:
        for first in range(0, len(buffers), _BUFFERS_PER_WRITE):
            part = buffers
            if len(buffers) > _BUFFERS_PER_WRITE:
                part = buffers[first : first + _BUFFERS_PER_WRITE]
            wanted = sum(map(len, part))
            written = os.pwritev(self._descriptor, part, position)
            position += written
            if written == wanted:
                continue
            rest = memoryview(b"".join(part))[written:]
            while rest:
                written = os.pwrite(self._descriptor, rest, position)
                position += written
                rest = rest[written:]

    def truncate(self, size: int) -> None:
        """Cut or extend to `size` bytes."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise _translated(error, "truncate", self.path) from error

    def sync(self) -> None:
        """`fdatasync`: the bytes and the length."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise StorageError(f"sync of {self.path} failed: {error.strerror}") from error

    def drop_cache(self) -> None:
        """`POSIX_FADV_DONTNEED` over the whole file."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Release the descriptor."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _LockFile:
    """One open file; each locked byte of it is somebody's. Closed with the last of them.

    Thousands of partitions share it: an open-file-description lock is a range of one open file,
    and giving up one range leaves the others (`fcntl(2)`).
    """

    __slots__ = ("_descriptor", "_path", "give_up", "held")

    def __init__(self, path: str, give_up: Callable[[str, int], None]) -> None:
        """Args: give_up: what its locks call in their end, with the path and the byte."""
        self.give_up = partial(give_up, path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise _translated(error, "open", path) from error
        self._path = path
        self.held: set[int] = set()
        """The kernel does not refuse a range to the open file that has it."""

    def take(self, position: int) -> bool:
        """Whether the byte is locked now, by this call."""
        if position in self.held:
            return False
        try:
            self._set(fcntl.F_WRLCK, position)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise _translated(error, "lock", self._path) from error
        self.held.add(position)
        return True

    def unlock(self, position: int) -> None:
        """Give the byte up."""
        try:
            self._set(fcntl.F_UNLCK, position)
        except OSError as error:
            raise _translated(error, "unlock", self._path) from error
        self.held.remove(position)

    def close(self) -> None:
        """Close it, unless something of it is locked."""
        if not self.held:
            os.close(self._descriptor)

    def _set(self, kind: int, position: int) -> None:
        wanted = _FLOCK.pack(kind, os.SEEK_SET, position, 1, 0)
        fcntl.fcntl(self._descriptor, _F_OFD_SETLK, wanted)


class DiskLock:
    """One byte of a lock file."""

    __slots__ = ("_give_up", "_position")

    def __init__(self, give_up: Callable[[int], None], position: int) -> None:
        """Args: give_up: of its file; thousands of locks share it."""
        self._give_up: Callable[[int], None] | None = give_up
        self._position = position

    def release(self) -> None:
        """Give it up."""
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up(self._position)


class DiskStorage:
    """The machine's file system. Directories are 0700 and files 0600; links are not followed."""

    def __init__(self) -> None:
        self._lock_files: dict[str, _LockFile] = {}
        self._locking = threading.Lock()
        """Many logs are opened at once, each by a thread."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        return self._open(path, flags)

    def open_for_reading(self, path: str) -> File:
        """Open for reading only."""
        return self._open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _open(self, path: str, flags: int) -> File:
        try:
            return DiskFile(os.open(path, flags, 0o600), path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not flags & os.O_CREAT:
                raise
            # With O_CREAT it is the directory that is gone, which nobody expects.
            raise _translated(error, "open", path) from error

    def exists(self, path: str) -> bool:
        """Whether the name is there."""
        return os.path.lexists(path)

    def is_directory(self, path: str) -> bool:
        """Whether a directory of that name is there."""
        return os.path.isdir(path)

    def list_directory(self, path: str) -> list[str]:
        """Names inside, sorted."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _translated(error, "list", path) from error

    def make_directory(self, path: str) -> None:
        """Make it and its missing parents."""
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            parent = os.path.dirname(path)
            if parent == path:
                break
            path = parent
        for name in reversed(missing):
            try:
                os.mkdir(name, 0o700)
            except FileExistsError:
                if not os.path.isdir(name):
                    raise StorageError(f"{name} is a file, a directory is needed there") from None
            except OSError as error:
                raise _translated(error, "make directory", name) from error
            self.sync_directory(os.path.dirname(name))

    def sync_directory(self, path: str) -> None:
        """Make the names inside durable."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"sync of directory {path} failed: {error.strerror}") from error

    def rename(self, source: str, target: str) -> None:
        """Replace `target` atomically."""
        try:
            os.replace(source, target)
        except OSError as error:
            raise _translated(error, "rename", source) from error

    def unlink(self, path: str) -> None:
        """Remove a file."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise _translated(error, "unlink", path) from error

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path)
        except OSError as error:
            raise _translated(error, "remove directory", path) from error

    def lock(self, path: str, position: int) -> Lock | None:
        """Take the exclusive lock on one byte of a file."""
        with self._locking:
            file = self._lock_files.get(path) or _LockFile(path, self._unlock)
            try:
                if not file.take(position):
                    return None
                self._lock_files[path] = file
            finally:
                file.close()
        return DiskLock(file.give_up, position)

    def _unlock(self, path: str, position: int) -> None:
        with self._locking:
            file = self._lock_files[path]
            file.unlock(position)
            if not file.held:
                del self._lock_files[path]
                file.close()

    def free_bytes(self, path: str) -> int:
        """Bytes that this user may still write."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


def _translated(error: OSError, action: str, path: str) -> StorageError | StorageFullError:
    message = f"{action} of {path} failed: {error.strerror or error}"
    if error.errno in _FULL:
        return StorageFullError(f"{message}; free some space, appends go on by themselves then")
    if error.errno in _TOO_MANY_OPEN:
        return StorageFullError(
            f"{message}; raise the limit of open files (`ulimit -n`), or have fewer partitions on "
            "this node; what was refused can be tried again"
        )
    return StorageError(message)
