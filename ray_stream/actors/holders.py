"""Processes that hold locks: who this one is, and ending one that must not write any more.

Owns: reading process start times, and the rules by which a holder may be killed: its raylet, as it
recorded it itself, is gone; or this same Ray has declared it dead, and it lives on, stopped or cut
off (STORAGE section 2). Refuses: killing anything else: two notebooks with two Rays must not kill
each other.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ray_stream.actors import spawning
from ray_stream.boot import boot_id
from ray_stream.errors import DataDirInUseError
from ray_stream.log import locks
from ray_stream.log.locks import Holder
from ray_stream.log.storage import Lock, Storage

RETRY_S = 0.05
ENDED_STATES = ("Z", "X")
"""Of a process in `/proc`: unreaped, and on its way out."""


def start_time(pid: int) -> int:
    """When a process started, in the kernel's ticks since boot; 0 when it is gone.

    One that ended and was not reaped by its parent is gone: its workers would wait for it forever.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in ENDED_STATES else int(fields[19])


def this_process(name: str, ray_address: str) -> Holder:
    """What this process writes beside its locks; its parent is the raylet that started it."""
    raylet = os.getppid()
    return Holder(
        pid=os.getpid(),
        start_time=start_time(os.getpid()),
        boot_id=boot_id(),
        raylet_pid=raylet,
        raylet_start_time=start_time(raylet),
        ray_address=ray_address,
        name=name,
    )


def end_orphan(holder: Holder | None, me: Holder) -> bool:
    """Kill the holder if it has no right to live on; say whether it was killed.

    Args:
        holder: as it noted itself.
        me: this process, as it would note itself.
    """
    if holder is None or not holder.raylet_pid:
        return False
    if not me.boot_id or holder.boot_id != me.boot_id:
        return False  # of another boot, or who knows: its process ids say nothing here
    if holder.pid == me.pid or start_time(holder.pid) != holder.start_time:
        return False
    raylet_lives = start_time(holder.raylet_pid) == holder.raylet_start_time
    if raylet_lives and not _is_declared_dead(holder, me):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGKILL)
    return True


def _is_declared_dead(holder: Holder, me: Holder) -> bool:
    """Whether this process's own Ray knows no such living actor.

    An actor's name is one living process's; whoever has the name now is the successor.
    """
    if not holder.name or holder.ray_address != me.ray_address:
        return False
    return holder.name == me.name or spawning.find(holder.name) is None


def in_use(path: str, holder: Holder | None) -> DataDirInUseError:
    """The error that names who holds a lock."""
    who = "another process"
    if holder is not None:
        who = f"process {holder.pid} ({holder.name}) of the Ray at {holder.ray_address}"
    return DataDirInUseError(
        f"{path} is in use by {who}: stop that cluster first (`ray-stream stop`), attach to it "
        "with its address, or give this one another data_dir"
    )


def wait_for_lock(
    storage: Storage,
    root: str,
    position: int,
    note: str,
    me: Holder,
    *,
    timeout_ms: int,
    pause: Callable[[float], None] = time.sleep,
) -> Lock:
    """Take a lock, waiting for a process that is about to end.

    Args:
        storage: where it is.
        root: the broker directory.
        position: of the lock, in `log.locks`.
        note: path of the holder's note.
        me: this process.
        timeout_ms: after a driver's `kill -9` an actor and its lock live 1.6 s more.
        pause: waits so many seconds.

    Raises:
        DataDirInUseError: it is still held; the message names by whom.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        lock = locks.try_lock(storage, root, position)
        if lock is not None:
            return lock
        holder = locks.read_holder(storage, note)
        end_orphan(holder, me)
        if time.monotonic() >= deadline:
            raise in_use(root, holder)
        pause(RETRY_S)
