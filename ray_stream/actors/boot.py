"""What the machine says about itself: which host it is.

Owns: reading that, and where a cluster's directories lie on this machine. Refuses: trusting it
beyond what it is: the host id tells which directories a broker may adopt.
"""

import os
import socket
from pathlib import Path

from ray_stream.errors import DataDirError

HOST_ID_VARIABLE = "RAY_STREAM_HOST_ID"
DATA_DIR_VARIABLE = "RAY_STREAM_DATA_DIR"


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


def make_root(root: Path) -> None:
    """Make the directory of a cluster on this node, unless it is there.

    Raises:
        DataDirError: it cannot be made, or not be used.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (root, *root.parents) if path.exists())
        raise DataDirError(
            f"{file} is a file, so data cannot be kept in {root}: data_dir must be a directory"
        ) from error
    except OSError as error:
        raise DataDirError(
            f"{root} cannot be made ({error.strerror}): give a data_dir that this user may write, "
            f"or set {DATA_DIR_VARIABLE}"
        ) from error
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise DataDirError(f"{root} cannot be written by this user: give another data_dir")
