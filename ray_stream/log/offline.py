"""The marker of a partition whose sync failed: beside the data, so no respawn clears it.

Owns: the file `offline` and what it says. Refuses: clearing it, which only `repair` does.

After a failed sync the page cache shows good bytes that are not on the disk, so whatever was
written behind the durable place must not be believed, whoever opens the log (STORAGE section 3).
"""

import json
from typing import NamedTuple

import crc32c
import msgspec

from ray_stream.log.checkpoint import Place
from ray_stream.log.storage import Storage, read_file, replace_file
from ray_stream.types import NO_OFFSET

OFFLINE_NAME = "offline"
EVERYTHING = 2**63 - 1
"""A marker's readable end, where nobody knows what was acknowledged: keep what can be kept."""


class OfflineMarker(NamedTuple):
    """Why a partition is offline, and how much of it is sure."""

    reason: str
    durable: Place | None
    """Everything in front was synced; None: the checkpoint's place is all that is known."""
    readable_end: int
    """Acknowledged or read by someone: `repair` keeps up to here what it can."""


class _Content(msgspec.Struct, frozen=True):
    reason: str
    offset: int
    segment: int
    position: int
    readable_end: int
    crc32c: int = 0


def write_marker(storage: Storage, directory: str, marker: OfflineMarker) -> None:
    """Record it; durable when this returns."""
    place = marker.durable or Place(NO_OFFSET, NO_OFFSET, 0)
    content = _Content(marker.reason, *place, marker.readable_end)
    sealed = msgspec.structs.replace(content, crc32c=_checksum(content))
    data = msgspec.json.format(msgspec.json.encode(sealed), indent=1)
    replace_file(storage, f"{directory}/{OFFLINE_NAME}", data)


def read_marker(storage: Storage, directory: str) -> OfflineMarker | None:
    """None: not offline. A damaged marker still means offline."""
    try:
        raw = read_file(storage, f"{directory}/{OFFLINE_NAME}")
    except FileNotFoundError:
        return None
    try:
        content = msgspec.json.decode(raw, type=_Content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = None
    if content is None or content.crc32c != _checksum(content):
        return OfflineMarker("a sync failed (the marker is damaged)", None, NO_OFFSET)
    place = Place(content.offset, content.segment, content.position)
    return OfflineMarker(
        content.reason, place if place.offset != NO_OFFSET else None, content.readable_end
    )


def clear_marker(storage: Storage, directory: str) -> None:
    """Remove it; durable when this returns."""
    storage.unlink(f"{directory}/{OFFLINE_NAME}")
    storage.sync_directory(directory)


def _checksum(content: _Content) -> int:
    plain = msgspec.structs.replace(content, crc32c=0)
    return crc32c.crc32c(json.dumps(msgspec.to_builtins(plain), sort_keys=True).encode())
