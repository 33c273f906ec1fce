"""A data directory as `verify` and `repair` meet it: what is in it, and that nobody uses it.

Owns: finding broker directories at whatever level was named, locking them, counting the bytes that
are read. Refuses: looking into logs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray_stream.errors import DataDirError, DataDirInUseError
from ray_stream.log import directory, locks
from ray_stream.log.storage import Buffer, DiskStorage, File, Storage

DEPTH = 2
"""A data directory holds clusters by name, and those hold broker directories."""


def broker_directories(data_dir: Path) -> list[Path]:
    """The broker directories that are `data_dir`, or in it, or in the clusters in it.

    Raises:
        DataDirError: there is none.
    """
    level = [data_dir.absolute()]
    for _ in range(DEPTH + 1):
        found = [one for one in level if _is_broker_directory(one)]
        if found:
            return found
        level = sorted(child for one in level for child in one.iterdir() if child.is_dir())
    raise DataDirError(
        f"{data_dir} holds no broker directory: give the data_dir that the cluster was started with"
    )


def _is_broker_directory(path: Path) -> bool:
    """One whose identity is lost is still one."""
    storage = DiskStorage()
    if any((path / name).exists() for name in (directory.IDENTITY_NAME, directory.METADATA_NAME)):
        return True
    return bool(directory.list_partitions(storage, str(path)))


@contextmanager
def unused(root: Path) -> Iterator[None]:
    """Keep brokers off a directory for the length of the block.

    Raises:
        DataDirInUseError: a process serves it; it is named.
    """
    storage, path = DiskStorage(), str(root)
    lock = locks.try_lock(storage, path, locks.BROKER_POSITION)
    if lock is None:
        raise _in_use(storage, path, "")
    try:
        # A host may live on for a moment after its broker, or for long when it is stopped.
        _check_free(storage, path, directory.METADATA_NAME, locks.METADATA_POSITION)
        for one in directory.list_partitions(storage, path):
            _check_free(
                storage, path, directory.partition_name(*one), locks.partition_position(*one)
            )
        yield
    finally:
        lock.release()


def _check_free(storage: Storage, root: str, name: str, position: int) -> None:
    lock = locks.try_lock(storage, root, position)
    if lock is None:
        raise _in_use(storage, root, name)
    lock.release()


def _in_use(storage: Storage, root: str, name: str) -> DataDirInUseError:
    holder = locks.read_holder(storage, locks.holder_path(root, name))
    who = f"process {holder.pid} of the Ray at {holder.ray_address}" if holder else "a process"
    return DataDirInUseError(
        f"{root} is in use by {who}: stop that cluster first (ray-stream stop)"
    )


class CountingStorage(DiskStorage):
    """The disk, and how much was read of it."""

    def __init__(self, count: Callable[[int], None]) -> None:
        """Args: count: told the bytes of each read of a segment."""
        super().__init__()
        self._count = count

    def open_for_reading(self, path: str) -> File:
        """Open for reading only."""
        file = super().open_for_reading(path)
        return _CountingFile(file, self._count) if path.endswith(".log") else file


class _CountingFile:
    """A file that tells how much is read of it."""

    def __init__(self, file: File, count: Callable[[int], None]) -> None:
        self._file = file
        self._count = count

    @property
    def path(self) -> str:
        return self._file.path

    def size(self) -> int:
        return self._file.size()

    def read(self, length: int, position: int) -> bytes:
        data = self._file.read(length, position)
        self._count(len(data))
        return data

    def read_into(self, buffer: memoryview, position: int) -> int:
        count = self._file.read_into(buffer, position)
        self._count(count)
        return count

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        self._file.write(buffers, position)

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def sync(self) -> None:
        self._file.sync()

    def drop_cache(self) -> None:
        self._file.drop_cache()

    def close(self) -> None:
        self._file.close()
