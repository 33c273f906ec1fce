"""Where an actor listens: a Unix socket for its machine, a TCP port for the others.

Owns: the addresses, making and removing listening sockets. Refuses: what is said over them, and
giving up: what cannot be listened on is left out, with a logged reason.

A socket's path may have 107 bytes, so it is no file of the data directory but the hash of the
actor's name in a directory of this user's, which nobody else may enter. What dead processes have
left there is removed by the next one that listens.
"""

import contextlib
import hashlib
import logging
import os
import socket
import stat
import time
from pathlib import Path

import msgspec

LOG = logging.getLogger(__name__)
BACKLOG = 512
YOUNG_S = 10.0
"""A socket so young may not listen yet, and is nobody's remains."""
BUFFER_BYTES = 1 << 20
"""What the kernel may keep of a stream, so that a batch goes in few pieces."""


class Endpoint(msgspec.Struct, frozen=True, array_like=True):
    """Where one actor listens."""

    boot_id: str
    """Of the machine whose paths `path` is one of."""
    path: str
    """Of the Unix socket; empty: none."""
    address: str
    """Of the TCP port; empty: none."""
    port: int

    def ways(self, boot_id: str) -> list["Way"]:
        """How a client on the machine of that boot gets there, the best way first."""
        ways: list[Way] = []
        if self.path and boot_id and boot_id == self.boot_id and Path(self.path).exists():
            ways.append(self.path)
        if self.address:
            ways.append((self.address, self.port))
        return ways


Way = str | tuple[str, int]
"""The path of a Unix socket, or an address and a port."""


def runtime_directory() -> Path:
    """Where this user's sockets are."""
    return Path("/tmp") / f"rs-{os.getuid()}"  # noqa: S108 - its owner and mode are checked


def listen_near(directory: Path, name: str) -> socket.socket | None:
    """Listen for this machine; None, and a line in the log, where that cannot be."""
    path = directory / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.sock"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _check_own(directory)
        _sweep(directory)
        path.unlink(missing_ok=True)
        sock.bind(os.fspath(path))
        sock.listen(BACKLOG)
    except OSError as error:
        LOG.warning("%s does not listen on a Unix socket at %s: %s", name, path, error)
        sock.close()
        return None
    sock.setblocking(False)
    return sock


def listen_far(address: str, name: str) -> socket.socket | None:
    """Listen for other machines; None, and a line in the log, where that cannot be."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.bind((address, 0))
        sock.listen(BACKLOG)
    except OSError as error:
        LOG.warning("%s does not listen on a port of %s: %s", name, address, error)
        sock.close()
        return None
    sock.setblocking(False)
    return sock


def stop_listening(sock: socket.socket) -> None:
    """Close a listening socket; a Unix one's file goes with it."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else ""
    sock.close()
    if path:
        with contextlib.suppress(OSError):
            Path(path).unlink(missing_ok=True)


def endpoint_of(boot_id: str, sockets: list[socket.socket]) -> Endpoint:
    """What clients are told."""
    path, address, port = "", "", 0
    for sock in sockets:
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX:
            path = name
        else:
            address, port = name[:2]
    return Endpoint(boot_id, path, address, port)


def new_socket(way: Way) -> socket.socket:
    """A socket that does not wait, for one way."""
    if isinstance(way, str):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in way[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def tune(sock: socket.socket) -> None:
    """Small frames go at once, big ones in few pieces, a machine that vanished is noticed."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _check_own(directory: Path) -> None:
    """Make the directory; raise OSError when it is not this user's alone."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{directory} is not a directory of this user's alone (mode 0700)")


def _sweep(directory: Path) -> None:
    """Remove sockets that nobody listens on any more."""
    now_s = time.time()
    for path in sorted(directory.glob("*.sock")):
        with contextlib.suppress(FileNotFoundError):
            if now_s - path.stat().st_mtime < YOUNG_S:
                continue
            with new_socket(os.fspath(path)) as sock:
                try:
                    sock.connect(os.fspath(path))
                except ConnectionRefusedError:
                    path.unlink()
                except OSError as error:
                    LOG.info("%s is left alone: %s", path, error)
