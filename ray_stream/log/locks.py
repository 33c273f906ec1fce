"""Who may write where: byte-range locks of a broker directory, and a note of who holds them.

Owns: which byte of the file `lock` stands for what, and the notes. Refuses: waiting, judging
whether a holder is alive, killing one: the shell that wants a lock does that.

The locks are what counts (`storage.Storage.lock`); a note only tells a person, or a supervisor,
whom a lock belongs to. The file `lock` is never unlinked or replaced: a new file would have locks
of its own. A note is written in place and not synced, for it means nothing after a reboot.
"""

import hashlib

import msgspec

from ray_stream.log.storage import Lock, Storage, read_file

LOCK_NAME = "lock"
HOLDER_NAME = "holder"
BROKER_POSITION = 0
METADATA_POSITION = 1
_FIRST_PARTITION = 2
_POSITIONS = 2**62


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that holds a lock, and the Ray that it belongs to.

    Start times tell a process from a later one with the same pid; they are the kernel's ticks since
    boot.
    """

    pid: int
    start_time: int
    boot_id: str
    raylet_pid: int = 0
    raylet_start_time: int = 0
    ray_address: str = ""
    name: str = ""
    """The actor's name."""


def partition_position(topic_id: str, partition: int) -> int:
    """The byte that stands for a partition: 62 bits of a hash that never changes."""
    name = f"{topic_id}-{partition}".encode()
    number = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    return _FIRST_PARTITION + number % (_POSITIONS - _FIRST_PARTITION)


def try_lock(storage: Storage, root: str, position: int) -> Lock | None:
    """Take one lock of a broker directory; None while another process holds it.

    Args:
        storage: where it is.
        root: the broker directory.
        position: `BROKER_POSITION`, `METADATA_POSITION` or `partition_position(...)`.
    """
    return storage.lock(f"{root}/{LOCK_NAME}", position)


def holder_path(root: str, name: str = "") -> str:
    """Where the holder is noted: of the broker directory, or of a directory `name` inside of it."""
    return f"{root}/{name}/{HOLDER_NAME}" if name else f"{root}/{LOCK_NAME}"


def write_holder(storage: Storage, path: str, holder: Holder) -> None:
    """Note who holds a lock; only whoever holds it may call this."""
    file = storage.open(path, create=True)
    try:
        data = msgspec.json.encode(holder)
        file.write([data], 0)
        file.truncate(len(data))
    finally:
        file.close()


def read_holder(storage: Storage, path: str) -> Holder | None:
    """Whoever noted itself last, which may be long ago; None: nobody did, or it is unreadable."""
    try:
        return msgspec.json.decode(read_file(storage, path), type=Holder)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
