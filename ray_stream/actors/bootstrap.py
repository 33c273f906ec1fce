"""Starting, finding and stopping a cluster from a driver; every call here blocks.

Owns: the order of a start (STORAGE section 4): brokers survey their disks, the holder of the
metadata log is found or, where no directory carries a cluster id, made; the controller claims its
epoch there; brokers register and partitions open. Refuses: deciding which Ray to use (`cluster`).

Missing is not empty: when directories of a cluster are there and the one with its metadata log is
not, the start waits for it and fails at its deadline, naming it.
"""

import contextlib
import time
import uuid
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError

from ray_stream.actors import registry, spawning
from ray_stream.actors.broker import BrokerActorClass
from ray_stream.actors.directories import Survey
from ray_stream.actors.revival import start_controller
from ray_stream.actors.settings import ClusterSpec, Seat, packed
from ray_stream.errors import (
    ClusterNotFoundError,
    DataDirError,
    DataDirInUseError,
    InconsistentClusterIdError,
    RayStreamError,
    TimeoutExpiredError,
)

POLL_S = 0.1
STOP_S = 20.0
PING_S = 5.0


def find_cluster(name: str) -> tuple[ClusterSpec, Seat] | None:
    """The spec and seat of a cluster that was started in this Ray and not stopped."""
    spec, seat = registry.read_spec(name), registry.read_seat(name)
    return (spec, seat) if spec is not None and seat is not None else None


def controller_lives(name: str) -> bool:
    """Whether a controller answers now."""
    actor: Any = spawning.find(spawning.controller_name(name))
    if actor is None:
        return False
    try:
        _result(actor.ping.remote(), time.monotonic() + PING_S, "asking the controller")
    except (RayError, TimeoutExpiredError):
        return False
    return True


def start_cluster(spec: ClusterSpec, near_node: str) -> Seat:
    """Bring a cluster up on the nodes of `spec`; returns where its controller runs.

    Args:
        spec: what to start.
        near_node: the node that gets the metadata log of a new cluster, if it is one of them.

    Raises:
        DataDirError: a node's data directory cannot be used, or the metadata log is missing.
        TimeoutExpiredError: not up within `start_timeout_ms`.
    """
    deadline = time.monotonic() + spec.config.start_timeout_ms / 1000
    registry.write_spec(spec)
    try:
        brokers = {node_id: _broker(spec, node_id) for node_id in spec.node_ids}
        seat, fresh, epochs = _choose_seat(spec, brokers, near_node, deadline)
        registry.write_seat(spec.name, seat)
        start_controller(spec, seat, fresh=fresh, directory_epochs=epochs)
    except RayError as error:
        raise _started_badly(spec, error) from error
    except BaseException:
        stop_cluster(spec.name)
        raise
    return seat


def _broker(spec: ClusterSpec, node_id: str) -> Any:
    options = spawning.options(
        spawning.broker_name(spec.name, node_id), node_id, get_if_exists=True
    )
    return BrokerActorClass.options(**options).remote(packed(spec), node_id)


def _choose_seat(
    spec: ClusterSpec, brokers: dict[str, Any], near_node: str, deadline: float
) -> tuple[Seat, bool, list[int]]:
    in_use_at = time.monotonic() + spec.config.lock_timeout_ms / 1000
    while True:
        surveys = _surveys(brokers, deadline)
        cluster_id = _one_cluster(surveys)
        if not cluster_id:
            return _make_cluster(brokers, surveys, near_node, deadline)
        epochs = [one.controller_epoch for survey in surveys.values() for one in survey.directories]
        for node_id, survey in surveys.items():
            for found in survey.directories:
                if found.has_metadata and found.locked:
                    seat = Seat(
                        cluster_id=cluster_id,
                        node_id=node_id,
                        host_id=survey.host_id,
                        directory=found.path,
                    )
                    return seat, False, epochs
        _give_up_in_time(spec, surveys, in_use_at, deadline)
        time.sleep(POLL_S)


def _surveys(brokers: dict[str, Any], deadline: float) -> dict[str, Survey]:
    asked = {node_id: broker.survey.remote() for node_id, broker in brokers.items()}
    surveys = {}
    for node_id, reference in asked.items():
        raw = _result(reference, deadline, "a node's survey of its data directory")
        surveys[node_id] = msgspec.json.decode(raw, type=Survey)
        surveys[node_id].raise_if_unusable()
    return surveys


def _one_cluster(surveys: dict[str, Survey]) -> str:
    ids = sorted({one.cluster_id for survey in surveys.values() for one in survey.directories})
    if len(ids) > 1:
        roots = sorted({survey.root for survey in surveys.values()})
        raise InconsistentClusterIdError(
            f"directories of different clusters lie in {', '.join(roots)}: cluster ids "
            f"{', '.join(ids)}; give each cluster a data_dir of its own"
        )
    return ids[0] if ids else ""


def _make_cluster(
    brokers: dict[str, Any], surveys: dict[str, Survey], near_node: str, deadline: float
) -> tuple[Seat, bool, list[int]]:
    node_id = near_node if near_node in brokers else next(iter(brokers))
    cluster_id = uuid.uuid4().hex
    directory_id = uuid.uuid4().hex
    reference = brokers[node_id].make_first_directory.remote(cluster_id, directory_id)
    path = _result(reference, deadline, "making the first data directory")
    seat = Seat(
        cluster_id=cluster_id,
        node_id=node_id,
        host_id=surveys[node_id].host_id,
        directory=path,
    )
    return seat, True, []


def _give_up_in_time(
    spec: ClusterSpec, surveys: dict[str, Survey], in_use_at: float, deadline: float
) -> None:
    """Raise when the metadata log was waited for long enough."""
    found = [one for survey in surveys.values() for one in survey.directories]
    now = time.monotonic()
    for one in found:
        if one.has_metadata and now > in_use_at:
            raise DataDirInUseError(
                f"{one.path} is in use by {one.holder or 'another process'}: stop that cluster "
                "first (`ray-stream stop`), attach to it with its address, or give this one "
                "another data_dir"
            )
    if now > deadline:
        names = ", ".join(sorted({one.metadata_directory_id for one in found}))
        raise DataDirError(
            f"cluster {spec.name!r} has data here, but the directory {names} with its metadata log "
            f"is on none of the nodes {', '.join(surveys)}: bring that node or disk back; nothing "
            "is made in its place"
        )


def stop_cluster(name: str) -> list[str]:
    """Stop a cluster's actors, logs closed first; data stays. Returns the names of the ended."""
    registry.forget(name)
    ended = []
    names = spawning.living_actors(name)
    # The controller first: it would start the others again. Brokers close their hosts' logs.
    for prefix in (f"{name}/controller", f"{name}/broker/", f"{name}/host/"):
        ended += _stop_all([one for one in names if one.startswith(prefix)])
    return ended


def _stop_all(names: list[str]) -> list[str]:
    actors: dict[str, Any] = {}
    for name in names:
        actor: Any = spawning.find(name)
        if actor is not None:
            actors[name] = actor
    stops = {name: actor.stop.remote() for name, actor in actors.items()}
    deadline = time.monotonic() + STOP_S
    for name, reference in stops.items():
        # Whatever does not end in time is ended hard: recovery takes it from there.
        with contextlib.suppress(RayError, RayStreamError):
            _result(reference, deadline, f"stopping {name}")
        ray.kill(actors[name])
    return list(actors)


def _result(reference: Any, deadline: float, what: str) -> Any:
    """Wait for a call in a way that Ctrl-C interrupts."""
    future = reference.future()
    while True:
        try:
            return future.result(min(0.2, max(0.0, deadline - time.monotonic())))
        except FutureTimeoutError:
            if time.monotonic() > deadline:
                raise TimeoutExpiredError(f"{what} took too long") from None


def _started_badly(spec: ClusterSpec, error: RayError) -> RayStreamError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayStreamError):
        return cause
    return ClusterNotFoundError(f"cluster {spec.name!r} could not be started: {error}")
