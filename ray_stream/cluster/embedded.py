"""Which Ray: the one that runs, the one that was named, or a local one of our own.

Owns: every `ray.init`, and `cluster.json`, which says where a living embedded Ray is. Refuses: a
bare `ray.init()` or `"auto"`: they join or start whatever is about.

A local Ray's processes end with the thread that started them, so when `start` is called on a thread
other than the main one they are started on a thread that lives as long as the process.
"""

import json
import logging
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError

from ray_stream.actors.spawning import NAMESPACE
from ray_stream.errors import ClusterNotFoundError, InvalidArgumentError

ADDRESS_VARIABLE = "RAY_ADDRESS"
FILE = "cluster.json"
PROBE_S = 1.0

# It says at each start that tokens are used, which nobody asked for and everybody may expect.
logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class ConnectedRay:
    """The Ray that this process is connected to."""

    address: str
    started_here: bool
    """Whether this call started it, so that leaving the block ends it."""


def find_ray(address: str | None, root: Path) -> ConnectedRay | None:
    """Connect to the Ray that is meant, without starting one; None when there is none.

    Args:
        address: as the caller gave it.
        root: the cluster's directory, where `cluster.json` may be.

    Raises:
        ClusterNotFoundError: the address does not answer.
        InvalidArgumentError: this process is connected to another Ray already.
    """
    named = address or os.environ.get(ADDRESS_VARIABLE) or None
    if named in ("local", "auto"):
        raise InvalidArgumentError(
            f"address={named!r}: give host:port or ray://host:port, or leave it out "
            "(then a local Ray is started)"
        )
    if ray.is_initialized():
        here = _here()
        if address is not None and not address.startswith("ray://") and address != here:
            raise InvalidArgumentError(
                f"this process is connected to the Ray at {here}, not to {address}: "
                "leave address out, or call ray.shutdown() first"
            )
        return ConnectedRay(here, started_here=False)
    if named is not None:
        _connect(named)
        return ConnectedRay(_here(), started_here=False)
    embedded = _living_embedded(root)
    if embedded is not None:
        _connect(embedded)
        return ConnectedRay(embedded, started_here=False)
    return None


def start_local_ray(root: Path) -> ConnectedRay:
    """Start a local Ray for this process and write where it is."""
    # Ray starts workers at niceness 15: beside busy drivers an actor then gets 2 % of its speed.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if threading.current_thread() is threading.main_thread():
        _init(address="local", include_dashboard=False)
    else:
        _on_a_lasting_thread()
    connected = ConnectedRay(_here(), started_here=True)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = root / f"{FILE}.{os.getpid()}"
    temporary.write_text(
        json.dumps({"address": connected.address, "pid": os.getpid(), "started": _process_start()}),
        encoding="utf-8",
    )
    temporary.replace(root / FILE)
    return connected


def stop_local_ray(root: Path) -> None:
    """End the local Ray that this process started."""
    (root / FILE).unlink(missing_ok=True)
    ray.shutdown()


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


def _connect(address: str) -> None:
    # A local Ray wants this user's token. Ray sends it by itself only to a Ray that it found by
    # itself, which we never let it do.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        _init(address=address)
    except (AuthenticationError, ConnectionError, RuntimeError, OSError) as error:
        raise ClusterNotFoundError(
            f"no Ray answers at {address}: {str(error).splitlines()[0]}; check the address, or "
            "start one with `ray start --head`"
        ) from error


def _init(**options: Any) -> None:
    ray.init(
        namespace=NAMESPACE,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.ERROR,
        **options,
    )


def _here() -> str:
    return str(ray.get_runtime_context().gcs_address)


def _living_embedded(root: Path) -> str | None:
    try:
        content = json.loads((root / FILE).read_text(encoding="utf-8"))
        address, pid, started = content["address"], int(content["pid"]), content["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if _process_start(pid) != started:
        return None
    host, _, port = str(address).rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_S):
            return str(address)
    except OSError:
        return None


def _process_start(pid: int | None = None) -> str:
    """When a process started, in the kernel's ticks; empty when it is not there."""
    try:
        stat = Path(f"/proc/{pid or os.getpid()}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
