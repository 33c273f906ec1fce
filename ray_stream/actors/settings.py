"""What an actor is told at its start, as bytes: nothing of ours is pickled through Ray.

Owns: the shapes, kept in Ray's internal key-value store for whoever has to replace an actor. That
store is a hint for the life of one Ray; the truth is in the data directories.
"""

import msgspec

from ray_stream.config import ClusterConfig


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `start` decided about a cluster."""

    name: str
    data_dir: str | None
    """Absolute path, the same on every node; None: each node's environment or default."""
    selector: dict[str, str] | None
    """Labels that a node must have to get a broker; None: the nodes alive at the start."""
    node_ids: list[str]
    """Nodes that were chosen at the start."""
    config: ClusterConfig
    api_version: int
    secret: str = ""
    """What clients prove to know when they connect to a socket, as hex; never shown, never logged.
    Empty: nothing listens."""

    def __repr__(self) -> str:
        return f"ClusterSpec(name={self.name!r})"


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Where the controller runs: beside the metadata log."""

    cluster_id: str
    node_id: str
    host_id: str
    directory: str
    """Path of the broker directory that holds the metadata log."""


class Founding(msgspec.Struct, frozen=True, kw_only=True):
    """Where a new cluster begins. The first word counts: two that start it at once make one."""

    cluster_id: str
    directory_id: str
    node_id: str


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """For a `PartitionActor`."""

    cluster: str
    host: str
    node_id: str
    config: ClusterConfig
    secret: str = ""
    """As the cluster's."""

    def __repr__(self) -> str:
        return f"HostSettings(host={self.host!r})"


def packed(settings: msgspec.Struct) -> bytes:
    """As bytes for an actor's start."""
    return msgspec.json.encode(settings)
