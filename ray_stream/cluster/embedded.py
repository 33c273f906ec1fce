"""Which Ray: the one that runs, the one that was named, or a local one of our own.

Owns: every `ray.init`, and `cluster.json`, which says where a living embedded cluster is. Refuses:
a bare `ray.init()` or `"auto"`: they join or start whatever is about.

A local Ray's processes end with the thread that started them, so when `start` is called on a thread
other than the main one they are started on a thread that lives as long as the process.

They may also end by themselves: a SIGTERM to the process group reaches them as well as us. Whoever
then asks Ray anything waits for a minute, out of reach of signals, and is ended by Ray. So what may
run into that is asked on another thread, and given up when the Ray is gone.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError

from ray_stream.actors.spawning import NAMESPACE, ray_address
from ray_stream.errors import (
    ClusterNotFoundError,
    InvalidArgumentError,
    RayNotRunningError,
    RayStartError,
)

ResultT = TypeVar("ResultT")

ADDRESS_VARIABLE = "RAY_ADDRESS"
_TEMPORARY = ("RAY_TMPDIR", "TMPDIR")
"""Where a local Ray puts its files: the first that is set; else /tmp."""
FILE = "cluster.json"
PROBE_S = 1.0
JOINING = threading.RLock()
"""Held while this process looks for its Ray: two threads must not both connect."""
CLIENT_SCHEME = "ray://"

_RAY_ERRORS = (ConnectionError, RuntimeError, ValueError, OSError)
"""What `ray.init` raises when a Ray does not answer, or does not start."""

_SOCKET = "ray/session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest name that Ray gives a Unix socket below its temporary directory."""
_SOCKET_BYTES_MAX = 103 if sys.platform == "darwin" else 107
"""What `sockaddr_un.sun_path` holds, without its final zero."""

_VITAL = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
_LOOK_S = 0.1
"""How often a call to the local Ray looks whether that is still there."""

_NOISE = {
    "ray._private.authentication.authentication_token_setup": "Token authentication is enabled",
    "ray._private.worker": "SIGTERM handler is not set",
}
"""What Ray says at each start although nobody did anything wrong."""


@dataclass(frozen=True, slots=True)
class ConnectedRay:
    """The Ray that this process is connected to."""

    address: str
    started_here: bool
    """Whether this call started it, so that leaving the block ends it."""


class _LocalRay:
    """The local Ray that this process started, while it lives."""

    address = ""


def find_ray(address: str | None, root: Path) -> ConnectedRay | None:
    """Connect to the Ray that is meant, without starting one; None when there is none.

    Args:
        address: as the caller gave it.
        root: the cluster's directory, where `cluster.json` may be.

    Raises:
        ClusterNotFoundError: the address does not answer.
        InvalidArgumentError: this process is connected to another Ray already.
    """
    _check(address, "address")
    if ray.is_initialized():
        here = ray_address()
        if address is not None and not _same(address, here):
            raise InvalidArgumentError(
                f"this process is connected to the Ray at {here}, not to {address}: "
                "leave address out, or call ray.shutdown() first"
            )
        return ConnectedRay(here, started_here=False)
    named = address or _check(os.environ.get(ADDRESS_VARIABLE) or None, ADDRESS_VARIABLE)
    if named is None:
        named = _living_embedded(root)
    if named is None:
        return None
    _connect(named)
    return ConnectedRay(ray_address(), started_here=False)


def join(address: str) -> None:
    """Connect to that Ray, unless this process is connected to one."""
    with JOINING:
        if not ray.is_initialized():
            _connect(address)


def start_local_ray() -> ConnectedRay:
    """Start a local Ray for this process.

    Raises:
        RayStartError: it cannot be started; the message says why.
    """
    check_temporary_directory()
    # Ray starts workers at niceness 15: beside busy drivers an actor then gets 2 % of its speed.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        if threading.current_thread() is threading.main_thread():
            _init(address="local", include_dashboard=False)
        else:
            _on_a_lasting_thread()
    except _RAY_ERRORS as error:
        raise RayStartError(f"no local Ray could be started: {_first_line(error)}") from error
    _LocalRay.address = ray_address()
    return ConnectedRay(_LocalRay.address, started_here=True)


def check_temporary_directory() -> None:
    """Refuse a temporary directory below which Ray cannot make its sockets.

    Ray finds out when it has made directories there, and tells neither whose setting it was nor
    how much too long it is.

    Raises:
        RayStartError: its path is too long.
    """
    variable = next((one for one in _TEMPORARY if one in os.environ), None)
    if variable is None:
        return
    directory = os.environ[variable]
    below = len(_SOCKET.format(pid=os.getpid())) + 1
    taken = len(os.fsencode(directory)) + below
    if taken > _SOCKET_BYTES_MAX:
        raise RayStartError(
            f"{variable}={directory!r} is too long: Ray's Unix sockets below it would have paths "
            f"of {taken} bytes, and {_SOCKET_BYTES_MAX} are possible; name one of at most "
            f"{_SOCKET_BYTES_MAX - below} bytes, such as RAY_TMPDIR=/tmp"
        )


def announce(root: Path) -> None:
    """Write where a cluster is, if it runs in a local Ray that this process started."""
    if ray_address() != _LocalRay.address:
        return
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = root / f"{FILE}.{os.getpid()}"
    content = {"address": _LocalRay.address, "pid": os.getpid(), "started": _process_start()}
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(root / FILE)


def stop_local_ray(root: Path) -> None:
    """End the local Ray that this process started, and say no more where it is."""
    said = _said(root)
    if said is not None and said[1:] == (os.getpid(), _process_start()):
        (root / FILE).unlink(missing_ok=True)
    if is_here(_LocalRay.address):
        if has_ended():
            # Asked in order, a raylet waits 10 s for a GCS that is gone.
            _node().kill_all_processes(check_alive=False, allow_graceful=False)
        ray.shutdown()
    _LocalRay.address = ""


def is_here(address: str) -> bool:
    """Whether this process is connected to that Ray now."""
    return ray.is_initialized() and ray_address() == address


def has_ended() -> bool:
    """Whether the local Ray that this process started is gone, or about to be.

    A process that it cannot do without is dead; or its GCS, told to end, has closed its port and
    waits 10 s for others. The kernel says so; Ray itself would not.
    """
    if any(kind in _VITAL for kind, _ in _node().dead_processes()):
        return True
    try:
        _touch(_LocalRay.address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # too busy to tell
    return False


def unless_it_ends(call: Callable[[], ResultT]) -> ResultT:
    """Ask the local Ray that this process started something.

    Args:
        call: what to ask; goes on waiting on a thread of its own when it is given up.

    Raises:
        RayNotRunningError: that Ray has ended, or did meanwhile.
    """
    outcome: list[tuple[ResultT] | BaseException] = []

    def run() -> None:
        try:
            outcome.append((call(),))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=run, name="ray_stream-asks-ray", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is about to exit, and starts no more threads
        run()
    while not outcome and not has_ended():
        thread.join(_LOOK_S)
    found = outcome[0] if outcome else None
    if isinstance(found, tuple):
        return found[0]
    if found is None or has_ended():
        raise RayNotRunningError(
            f"the local Ray at {_LocalRay.address} ended before it was told to; what was "
            "acknowledged is on disk, and the next start on the same data_dir has it"
        ) from found
    raise found


def _node() -> Any:
    """Ray's own record of the processes that this process started."""
    return ray_worker._global_node  # noqa: SLF001 - nothing public tells who has died


def _on_a_lasting_thread() -> None:
    outcome: list[BaseException | None] = []
    started = threading.Event()

    def run() -> None:
        try:
            _init(address="local", include_dashboard=False)
            outcome.append(None)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            outcome.append(error)
        started.set()
        if outcome[0] is None:
            threading.Event().wait()

    threading.Thread(target=run, name="ray_stream-embedded-ray", daemon=True).start()
    started.wait()
    if outcome[0] is not None:
        raise outcome[0]


def _check(address: str | None, origin: str) -> str | None:
    if address in ("local", "auto"):
        raise InvalidArgumentError(
            f"{origin}={address!r}: give host:port or ray://host:port, or leave it out "
            "(then a local Ray is started)"
        )
    return address


def _same(address: str, here: str) -> bool:
    """Whether a user's words mean the Ray at `here`; `ray://` names a proxy, which says nothing."""
    if address.startswith(CLIENT_SCHEME) or address == here:
        return True
    host, _, port = address.rpartition(":")
    if port != here.rpartition(":")[2]:
        return False
    with contextlib.suppress(OSError):
        meant = socket.gethostbyname(host)
        return meant.startswith("127.") or meant == here.rpartition(":")[0]
    return False


def _connect(address: str) -> None:
    if not address.startswith(CLIENT_SCHEME) and not _answers(address):
        # Ray itself tries for half a minute.
        raise ClusterNotFoundError(_unreachable(address, "nothing listens there"))
    try:
        with _without_noise():
            # A local Ray wants this user's token. Ray sends it by itself only to a Ray that it
            # found by itself, which we never let it do.
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        _init(address=address)
    except (AuthenticationError, *_RAY_ERRORS) as error:
        raise ClusterNotFoundError(_unreachable(address, _first_line(error))) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreachable(address: str, reason: str) -> str:
    return (
        f"no Ray answers at {address}: {reason}; check the address, or start one with "
        "`ray start --head`"
    )


def _init(**options: Any) -> None:
    with _without_noise():
        ray.init(
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            **options,
        )


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    def is_news(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_NOISE[record.name])

    loggers = [logging.getLogger(name) for name in _NOISE]
    for logger in loggers:
        logger.addFilter(is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_news)


def _living_embedded(root: Path) -> str | None:
    said = _said(root)
    if said is None:
        return None
    address, pid, started = said
    return address if _process_start(pid) == started and _answers(address) else None


def _said(root: Path) -> tuple[str, int, str] | None:
    """Address, process id and its start, as `cluster.json` has them; None: it has nothing."""
    try:
        content = json.loads((root / FILE).read_text(encoding="utf-8"))
        return str(content["address"]), int(content["pid"]), str(content["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answers(address: str) -> bool:
    try:
        _touch(address)
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _touch(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=PROBE_S).close()


def _process_start(pid: int | None = None) -> str:
    """When a process started, in the kernel's ticks; empty when it is not there."""
    try:
        stat = Path(f"/proc/{pid or os.getpid()}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
