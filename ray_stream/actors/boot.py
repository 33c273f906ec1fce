"""What the machine says about itself: which boot this is, and which host.

Owns: reading them. Refuses: trusting them beyond what they are: the boot id tells whether a power
loss may have happened since, the host id which directories a broker may adopt.
"""

import os
import socket
from pathlib import Path

HOST_ID_VARIABLE = "RAY_STREAM_HOST_ID"
DATA_DIR_VARIABLE = "RAY_STREAM_DATA_DIR"


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none, which reads as "another boot"."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def host_id() -> str:
    """The machine's id, or its name where it has none; the environment may set it."""
    named = os.environ.get(HOST_ID_VARIABLE)
    if named:
        return named
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


def data_root(data_dir: str | None, cluster: str) -> str:
    """The directory of one cluster on this node: given, from the environment, or a user's own."""
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if not chosen:
        share = os.environ.get("XDG_DATA_HOME")
        base = Path(share) if share else Path.home() / ".local" / "share"
        return str(base / "ray_stream" / cluster)
    return str(Path(chosen).absolute() / cluster)
