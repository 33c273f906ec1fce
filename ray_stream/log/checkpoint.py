"""The one small file from which a log is opened: what was durable, and what only it knows.

Owns: the layout of `checkpoint` and its checksum. Refuses: guessing. A checkpoint that is missing
or damaged is an error and never a fresh start: log start, quarantined ranges and claimed epochs
stand nowhere else. `repair` makes it again from the batches and says what it could not know.

It is replaced as a whole (`storage.replace_file`), so a crash leaves the old one or the new one.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

import crc32c

from ray_stream.errors import CorruptMetadataError
from ray_stream.log.storage import Storage, read_file, replace_file
from ray_stream.types import NO_EPOCH, NO_OFFSET, NO_TIMESTAMP

CHECKPOINT_NAME = "checkpoint"
FORMAT_VERSION = 1

_MAGIC = 0x50435352
_PREFIX = struct.Struct("<IHHII")
_FIXED = struct.Struct("<qqqIqqqiqqI")
_COUNTS = struct.Struct("<IIII")
_EPOCH = struct.Struct("<iq")
_RANGE = struct.Struct("<qqI")
_CLEAN = 1
_EPOCH_NEEDED = 2


class Place(NamedTuple):
    """A position between two batches: the offset there, and which byte of which segment it is."""

    offset: int
    segment: int
    """Base offset of the segment."""
    position: int


class DamagedRange(NamedTuple):
    """Offsets whose bytes are lost or unreadable; never served, never used again."""

    first_offset: int
    next_offset: int
    reason: str


def merge_ranges(ranges: tuple[DamagedRange, ...]) -> tuple[DamagedRange, ...]:
    """Sorted, and what overlaps made one."""
    merged: list[DamagedRange] = []
    for one in sorted(ranges):
        if merged and one.first_offset < merged[-1].next_offset:
            last = merged[-1]
            merged[-1] = last._replace(next_offset=max(last.next_offset, one.next_offset))
        else:
            merged.append(one)
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log is opened from."""

    log_start: int
    durable: Place
    """Everything in front of it was synced."""
    generation: int = 0
    """The generation of the segment of `durable`."""
    first_timestamp: int = NO_TIMESTAMP
    """Append time of that segment's first batch."""
    max_timestamp: int = NO_TIMESTAMP
    """The greatest time in that segment in front of `durable`."""
    leader_epoch: int = NO_EPOCH
    """The highest that was ever claimed."""
    epochs: tuple[tuple[int, int], ...] = ()
    """(leader epoch, its first offset), ascending."""
    quarantine: tuple[DamagedRange, ...] = ()
    boot_id: str = ""
    clean: bool = False
    """The log was closed in order and nothing was written since."""
    epoch_needed: bool = False
    """Something was cut off: a new leader epoch must begin before the next append."""
    producers_at: Place | None = None
    """Where `producers` is the state; None: begin at the snapshot of the segment of `durable`."""
    producers: bytes = b""
    """`Producers.encode` at `producers_at`."""

    def encode(self) -> bytes:
        """The file's bytes."""
        at = self.producers_at or Place(NO_OFFSET, NO_OFFSET, 0)
        boot_id = self.boot_id.encode()
        body = [
            _FIXED.pack(
                self.log_start,
                self.durable.offset,
                self.durable.segment,
                self.generation,
                self.durable.position,
                self.first_timestamp,
                self.max_timestamp,
                self.leader_epoch,
                at.offset,
                at.segment,
                at.position,
            ),
            _COUNTS.pack(len(boot_id), len(self.epochs), len(self.quarantine), len(self.producers)),
            boot_id,
            *(_EPOCH.pack(*entry) for entry in self.epochs),
        ]
        for damaged in self.quarantine:
            reason = damaged.reason.encode()
            body += [_RANGE.pack(*damaged[:2], len(reason)), reason]
        body.append(self.producers)
        data = b"".join(body)
        flags = _CLEAN * self.clean | _EPOCH_NEEDED * self.epoch_needed
        head = _PREFIX.pack(_MAGIC, FORMAT_VERSION, flags, len(data), 0)
        return (
            _PREFIX.pack(
                _MAGIC, FORMAT_VERSION, flags, len(data), crc32c.crc32c(data, crc32c.crc32c(head))
            )
            + data
        )

    @classmethod
    def decode(cls, raw: bytes, path: str) -> "Checkpoint":
        """Read the file's bytes.

        Raises:
            CorruptMetadataError: damaged, or written by a newer version.
        """
        version, flags, data = _checked(raw, path)
        if version > FORMAT_VERSION:
            raise CorruptMetadataError(
                f"{path} has version {version}, this program knows {FORMAT_VERSION}: "
                "use the newer program that wrote it"
            )
        fixed = _FIXED.unpack_from(data)
        position = _FIXED.size
        boot_bytes, epoch_count, range_count, producer_bytes = _COUNTS.unpack_from(data, position)
        position += _COUNTS.size
        boot_id = data[position : position + boot_bytes].decode()
        position += boot_bytes
        epochs_end = position + epoch_count * _EPOCH.size
        epochs = tuple(_EPOCH.iter_unpack(data[position:epochs_end]))
        position = epochs_end
        quarantine = []
        for _ in range(range_count):
            first, following, reason_bytes = _RANGE.unpack_from(data, position)
            position += _RANGE.size
            reason = data[position : position + reason_bytes].decode()
            quarantine.append(DamagedRange(first, following, reason))
            position += reason_bytes
        producers_at = Place(*fixed[8:])
        return cls(
            log_start=fixed[0],
            durable=Place(fixed[1], fixed[2], fixed[4]),
            generation=fixed[3],
            first_timestamp=fixed[5],
            max_timestamp=fixed[6],
            leader_epoch=fixed[7],
            epochs=epochs,
            quarantine=tuple(quarantine),
            boot_id=boot_id,
            clean=bool(flags & _CLEAN),
            epoch_needed=bool(flags & _EPOCH_NEEDED),
            producers_at=producers_at if producers_at.offset != NO_OFFSET else None,
            producers=data[position : position + producer_bytes],
        )


def _checked(raw: bytes, path: str) -> tuple[int, int, bytes]:
    """Version, flags and body of a file whose checksum matches."""
    if len(raw) >= _PREFIX.size:
        magic, version, flags, length, checksum = _PREFIX.unpack_from(raw)
        data = raw[_PREFIX.size :]
        head = _PREFIX.pack(magic, version, flags, length, 0)
        if (
            magic == _MAGIC
            and length == len(data)
            and checksum == crc32c.crc32c(data, crc32c.crc32c(head))
        ):
            return version, flags, data
    raise CorruptMetadataError(
        f"{path} is damaged. Nothing is guessed in its place: `ray-stream repair` makes it again "
        "from the batches, and says what it could not know"
    )


def read_checkpoint(storage: Storage, directory: str) -> Checkpoint:
    """Read the checkpoint of a partition's directory.

    Raises:
        CorruptMetadataError: it is missing or damaged.
    """
    path = f"{directory}/{CHECKPOINT_NAME}"
    try:
        raw = read_file(storage, path)
    except FileNotFoundError:
        raise CorruptMetadataError(
            f"{path} is missing, so the log there cannot be opened: `ray-stream repair` makes it "
            "again from the batches"
        ) from None
    return Checkpoint.decode(raw, path)


def write_checkpoint(storage: Storage, directory: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint; durable when this returns."""
    replace_file(storage, f"{directory}/{CHECKPOINT_NAME}", checkpoint.encode())
