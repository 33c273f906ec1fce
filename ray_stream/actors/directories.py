"""The data directories that one broker sees and holds.

Owns: scanning the root, locks, identities, new directories. Refuses: choosing: which to serve and
which to make is the controller's word (`metadata.adoption`).
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from ray_stream.actors import holders
from ray_stream.actors.boot import make_root
from ray_stream.errors import CorruptMetadataError, DataDirSharedError, RayStreamError
from ray_stream.log import directory, locks
from ray_stream.log.directory import Identity
from ray_stream.log.locks import Holder
from ray_stream.log.offline import read_marker
from ray_stream.log.storage import DiskStorage, Lock
from ray_stream.metadata.commands import (
    AssignedPartition,
    BrokerRegistered,
    DirectoryReport,
    NewDirectory,
)
from ray_stream.rpc.messages import ErrorInfo

LOG = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")


class SeenDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """One directory on this node's disk."""

    directory_id: str
    cluster_id: str
    broker_id: int
    path: str
    metadata_directory_id: str
    has_metadata: bool
    locked: bool
    controller_epoch: int
    holder: str
    """Who has the lock, when this broker has not."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a node sees below its root."""

    host_id: str
    root: str
    directories: list[SeenDirectory]
    problems: list[ErrorInfo]

    def reports(self) -> list[DirectoryReport]:
        """As a registration wants it."""
        return [
            DirectoryReport(
                one.directory_id, one.broker_id, one.locked, one.has_metadata, one.controller_epoch
            )
            for one in self.directories
        ]

    def raise_if_unusable(self) -> None:
        """Raise the first problem: a damaged, newer or foreign directory stops a start."""
        if self.problems:
            raise self.problems[0].to_error()


@dataclass(slots=True)
class _Held:
    path: str
    identity: Identity
    lock: Lock


def _in_turn(
    method: "Callable[Concatenate[BrokerDirectories, Arguments], ResultT]",
) -> "Callable[Concatenate[BrokerDirectories, Arguments], ResultT]":
    """One caller at a time: a start's survey and a registration's come on threads of their own."""

    @wraps(method)
    def locked(
        self: "BrokerDirectories", /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> ResultT:
        with self.turn:
            return method(self, *args, **kwargs)

    return locked


class BrokerDirectories:
    """The directories of one broker process. Safe from any thread."""

    def __init__(self, root: str, host_id: str, holder: Holder) -> None:
        """Args: root: the cluster's directory on this node; holder: this process, for its locks."""
        self.turn = threading.RLock()
        self._storage = DiskStorage()
        self._root = root
        self._host_id = host_id
        self._holder = holder
        self._held: dict[str, _Held] = {}

    @_in_turn
    def survey(self, *, take_locks: bool) -> Survey:
        """Look at the root; with `take_locks`, lock every directory that is free."""
        make_root(Path(self._root))
        seen, problems = [], []
        for found in directory.scan(self._storage, self._root):
            try:
                if found.problem is not None or found.identity is None:
                    raise found.problem or CorruptMetadataError(f"{found.path} has no identity")
                self._check_host(found.identity, found.path)
                if take_locks:
                    self._lock(found.identity, found.path)
            except RayStreamError as problem:
                problems.append(ErrorInfo.of(problem))
                continue
            seen.append(self._seen(found.identity, found.path, has_metadata=found.has_metadata))
        return Survey(host_id=self._host_id, root=self._root, directories=seen, problems=problems)

    @_in_turn
    def make(
        self, cluster_id: str, directory_id: str, broker_id: int, metadata_directory_id: str
    ) -> str:
        """Make a directory and lock it; returns its path."""
        identity = Identity(
            cluster_id=cluster_id,
            broker_id=broker_id,
            directory_id=directory_id,
            host_id=self._host_id,
            metadata_directory_id=metadata_directory_id,
        )
        path = directory.make_directory(self._storage, self._root, identity)
        self._lock(identity, path)
        return path

    @_in_turn
    def acquire(
        self,
        make: Sequence[NewDirectory],
        acquire: Sequence[str],
        cluster_id: str,
        metadata_directory_id: str,
    ) -> bool:
        """Make and lock what the controller said; say whether anything was gained."""
        before = len(self._held)
        for new in make:
            self.make(cluster_id, new.directory_id, new.broker_id, metadata_directory_id)
        for found in directory.scan(self._storage, self._root):
            if found.identity is not None and found.identity.directory_id in acquire:
                self._lock(found.identity, found.path)
        return len(self._held) > before

    @_in_turn
    def accept(self, registered: BrokerRegistered) -> None:
        """Keep what is owned, release the rest; record the controller's epoch durably."""
        self.release([one for one in self._held if one not in registered.owned])
        for held in self._held.values():
            try:
                held.identity = directory.see_controller_epoch(
                    self._storage, held.path, held.identity, registered.controller_epoch
                )
                directory.finish_deletes(self._storage, held.path)
            except (RayStreamError, FileNotFoundError) as refused:
                # Full, or gone: its partitions say so, one by one, and the others are served.
                LOG.warning(
                    "%s: controller epoch %d is not noted, tried again with the next registration: "
                    "%s",
                    held.path,
                    registered.controller_epoch,
                    refused,
                )

    @_in_turn
    def repaired(self, partitions: Sequence[AssignedPartition]) -> list[AssignedPartition]:
        """Those recorded as offline that have no marker beside their data any more."""
        return [
            one
            for one in partitions
            if one.offline_reason
            and (held := self._held.get(one.directory_id)) is not None
            and read_marker(
                self._storage, directory.partition_path(held.path, one.topic_id, one.partition)
            )
            is None
        ]

    @_in_turn
    def held(self) -> list[str]:
        """Ids of the directories that are locked here."""
        return sorted(self._held)

    @_in_turn
    def paths(self) -> dict[str, str]:
        """Path of each directory that is locked here."""
        return {directory_id: held.path for directory_id, held in self._held.items()}

    @_in_turn
    def release(self, directory_ids: Sequence[str]) -> None:
        """Give up locks."""
        for directory_id in directory_ids:
            held = self._held.pop(directory_id, None)
            if held is not None:
                held.lock.release()

    @_in_turn
    def release_all(self) -> None:
        """Give up every lock."""
        self.release(self.held())

    def _check_host(self, identity: Identity, path: str) -> None:
        if identity.host_id != self._host_id:
            raise DataDirSharedError(
                f"{path} was made on host {identity.host_id} and is seen on {self._host_id}: if it "
                "lies on a shared file system, give each host a data_dir of its own; if its disk "
                "was moved here, set RAY_STREAM_HOST_ID to the old host's id"
            )

    def _lock(self, identity: Identity, path: str) -> None:
        if identity.directory_id in self._held:
            return
        lock = locks.try_lock(self._storage, path, locks.BROKER_POSITION)
        if lock is None:
            holder = locks.read_holder(self._storage, locks.holder_path(path))
            holders.end_orphan(holder, self._holder)
            return
        self._held[identity.directory_id] = _Held(path, identity, lock)
        locks.write_holder(self._storage, locks.holder_path(path), self._holder)

    def _seen(self, identity: Identity, path: str, *, has_metadata: bool) -> SeenDirectory:
        locked = identity.directory_id in self._held
        holder = None if locked else locks.read_holder(self._storage, locks.holder_path(path))
        return SeenDirectory(
            directory_id=identity.directory_id,
            cluster_id=identity.cluster_id,
            broker_id=identity.broker_id,
            path=path,
            metadata_directory_id=identity.metadata_directory_id,
            has_metadata=has_metadata,
            locked=locked,
            controller_epoch=identity.controller_epoch,
            holder=f"process {holder.pid} of the Ray at {holder.ray_address}" if holder else "",
        )
