"""Snapshots of a machine: files that stand for the log in front of an offset.

Owns: their bytes and names, writing one so that it is whole or not there, and keeping two.
Refuses: what is in a fact (its machine's `records`), when one is due and what it lets go of
(`journal`).

A snapshot is a header and a MessagePack array of records. It is written to a temporary file,
synced, renamed, and the directory synced (STORAGE section 5), so a file under its own name is
whole unless the disk damaged it; both checksums are checked before a record is read. Two are
kept, because the log behind the older one is kept as well: a damaged newest one costs nothing.
"""

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import crc32c
import msgspec

from ray_stream.errors import CorruptMetadataError, DataDirVersionError
from ray_stream.log.storage import Storage, read_file, replace_file

KEPT = 2
VERSION = 1
_MAGIC = b"RSTRIMG\n"
_HEADER = struct.Struct("<8sIIqQI")
"""Magic, version, number of records, end offset, payload bytes, CRC32C of the payload."""
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
_NAME = re.compile(r"(\d{20})\.image\Z", re.ASCII)
_DRAFT = re.compile(r"\d{20}\.image\.tmp\Z", re.ASCII)


class Snapshot(NamedTuple):
    """The facts that equal the log up to an offset, as bytes."""

    end_offset: int
    """The first offset that is not in it."""
    data: bytes


def encode_snapshot(encoded: Sequence[bytes], end_offset: int) -> Snapshot:
    """The file's content, of facts in their bytes."""
    payload = msgspec.msgpack.encode(encoded)
    header = _HEADER.pack(
        _MAGIC, VERSION, len(encoded), end_offset, len(payload), crc32c.crc32c(payload)
    )
    return Snapshot(end_offset, header + _CRC.pack(crc32c.crc32c(header)) + payload)


def decode_snapshot(data: bytes, end_offset: int, path: str) -> Sequence[bytes]:
    """The bytes of the facts in a file's content.

    Args:
        data: the whole file.
        end_offset: what its name says.
        path: for messages.

    Raises:
        CorruptMetadataError: it is not whole, or not what its name says.
        DataDirVersionError: written by a newer version.
    """
    header = data[: _HEADER.size]
    if len(data) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise CorruptMetadataError(f"{path} is not a snapshot")
    if _CRC.unpack_from(data, _HEADER.size)[0] != crc32c.crc32c(header):
        raise CorruptMetadataError(f"{path} is damaged: the checksum of its header does not match")
    _, version, count, end, length, checksum = _HEADER.unpack(header)
    if version != VERSION:
        raise DataDirVersionError(
            f"{path} has version {version}, this program reads {VERSION}: use the newer one"
        )
    payload = data[_HEADER_BYTES:]
    if len(payload) != length or crc32c.crc32c(payload) != checksum or end != end_offset:
        raise CorruptMetadataError(f"{path} is damaged: its content does not match its header")
    try:
        encoded = msgspec.msgpack.decode(payload, type=list[bytes])
    except msgspec.DecodeError as error:
        raise CorruptMetadataError(f"{path} cannot be read: {error}") from error
    if len(encoded) != count:
        raise CorruptMetadataError(f"{path} has {len(encoded)} records instead of {count}")
    return encoded


class Snapshots:
    """The snapshots in one directory, beside the log."""

    def __init__(self, storage: Storage, directory: str) -> None:
        """Args: directory: the log's."""
        self._storage = storage
        self._directory = directory

    def end_offsets(self) -> list[int]:
        """What there is, oldest first."""
        names = self._storage.list_directory(self._directory)
        return sorted(int(found[1]) for name in names if (found := _NAME.match(name)))

    def load(self, end_offset: int) -> Sequence[bytes]:
        """The bytes of the facts of one; raises as `decode_snapshot`, and `StorageError`."""
        path = self._path(end_offset)
        return decode_snapshot(read_file(self._storage, path), end_offset, path)

    def keep(self, snapshot: Snapshot) -> int:
        """Make one durable, and drop those that are not among the newest two.

        Returns:
            The end offset of the oldest that is kept: the log in front of it is not needed. 0: all
            of it is, because there is only this one.

        Raises:
            StorageError, StorageFullError: those that were there still are.
        """
        replace_file(self._storage, self._path(snapshot.end_offset), snapshot.data)
        there = self.end_offsets()
        for end_offset in there[:-KEPT]:
            self._storage.unlink(self._path(end_offset))
        return there[-KEPT] if len(there) >= KEPT else 0

    def sweep(self) -> None:
        """Remove what a crash left of unfinished ones."""
        for name in self._storage.list_directory(self._directory):
            if _DRAFT.match(name):
                self._storage.unlink(f"{self._directory}/{name}")

    def _path(self, end_offset: int) -> str:
        return f"{self._directory}/{end_offset:020d}.image"
