"""What Ray's internal key-value store knows of a cluster: its spec and the controller's seat.

Owns: the keys. A hint for one life of the GCS, so that anyone can replace a dead actor; truth is on
the disks (DESIGN D7). Refuses: deciding.
"""

import msgspec
from ray.experimental import internal_kv

from ray_stream.actors.settings import ClusterSpec, Founding, Seat, packed
from ray_stream.actors.spawning import require_ray

_SPACE = b"ray_stream"


def read_spec(cluster: str) -> ClusterSpec | None:
    """The spec of a cluster that was started in this Ray, and not stopped since."""
    raw = _get(f"{cluster}/spec")
    return msgspec.json.decode(raw, type=ClusterSpec) if raw else None


def claim_spec(spec: ClusterSpec) -> bool:
    """Record a spec if there is none of that name; say whether this one was recorded."""
    return _claim(f"{spec.name}/spec", packed(spec))


def write_spec(spec: ClusterSpec) -> None:
    """Record a spec."""
    _put(f"{spec.name}/spec", packed(spec))


def read_seat(cluster: str) -> Seat | None:
    """Where the controller was last."""
    raw = _get(f"{cluster}/seat")
    return msgspec.json.decode(raw, type=Seat) if raw else None


def write_seat(cluster: str, seat: Seat) -> None:
    """Record where the controller is."""
    _put(f"{cluster}/seat", packed(seat))


def founding(cluster: str, proposal: Founding) -> Founding:
    """Where a new cluster begins: as proposed, or as somebody else proposed before."""
    key = f"{cluster}/founding"
    while not _claim(key, packed(proposal)):
        raw = _get(key)
        if raw:
            return msgspec.json.decode(raw, type=Founding)
    return proposal


def forget(cluster: str) -> None:
    """Remove everything about a cluster that was stopped."""
    require_ray()
    for key in ("spec", "seat", "founding"):
        internal_kv._internal_kv_del(  # noqa: SLF001 - Ray offers no public name
            f"{cluster}/{key}".encode(), namespace=_SPACE
        )


def _get(key: str) -> bytes | None:
    require_ray()
    value: bytes | None = internal_kv._internal_kv_get(  # noqa: SLF001 - Ray offers no public name
        key.encode(), namespace=_SPACE
    )
    return value


def _claim(key: str, value: bytes) -> bool:
    require_ray()
    existed = internal_kv._internal_kv_put(  # noqa: SLF001 - Ray offers no public name
        key.encode(), value, overwrite=False, namespace=_SPACE
    )
    return not existed


def _put(key: str, value: bytes) -> None:
    require_ray()
    internal_kv._internal_kv_put(  # noqa: SLF001 - Ray offers no public name
        key.encode(), value, overwrite=True, namespace=_SPACE
    )
