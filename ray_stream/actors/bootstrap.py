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
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError

from ray_stream.actors import registry, spawning
from ray_stream.actors.answers import answer_of, raise_plain
from ray_stream.actors.broker import BrokerActorClass
from ray_stream.actors.directories import SeenDirectory, Survey
from ray_stream.actors.revival import start_controller
from ray_stream.actors.settings import ClusterSpec, Founding, Seat, packed
from ray_stream.errors import (
    DataDirError,
    DataDirInUseError,
    InconsistentClusterIdError,
    RayStreamError,
    TimeoutExpiredError,
)
from ray_stream.log.directory import METADATA_NAME

POLL_S = 0.05
STOP_S = 20.0
PING_S = 5.0


def running_spec(name: str) -> ClusterSpec | None:
    """What was decided about a cluster that was started in this Ray, or is being started."""
    return registry.read_spec(name)


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
        answer_of(actor.ping.remote(), time.monotonic() + PING_S, "asking the controller")
    except (RayError, TimeoutExpiredError):
        return False
    return True


def start_cluster(
    wanted: ClusterSpec, near_node: str, timeout_s: float
) -> tuple[ClusterSpec, Seat]:
    """Bring a cluster up; join in where somebody else is at it.

    Args:
        wanted: what to start; where a spec is recorded already, that one counts, for the nodes of
            this one.
        near_node: the node that gets the metadata log of a new cluster, if it is one of them.
        timeout_s: seconds until it must be up.

    Returns:
        The spec that counts, and where its controller runs.

    Raises:
        DataDirError: a node's data directory cannot be used, or the metadata log is missing.
        TimeoutExpiredError: not up in time.
        RayStreamError: what an actor raised at its start.
    """
    deadline_s = time.monotonic() + timeout_s
    is_first = registry.claim_spec(wanted)
    spec = wanted
    if not is_first:
        recorded = registry.read_spec(wanted.name) or wanted
        spec = msgspec.structs.replace(recorded, node_ids=wanted.node_ids)
        registry.write_spec(spec)
    try:
        return spec, _start(spec, near_node, deadline_s)
    except BaseException as error:
        if is_first:  # whoever joined in must not end what others run
            stop_cluster(spec.name)
        if isinstance(error, RayError):
            raise_plain(error, f"starting cluster {spec.name!r}")
        raise


def _start(spec: ClusterSpec, near_node: str, deadline_s: float) -> Seat:
    brokers = {node_id: _broker(spec, node_id) for node_id in spec.node_ids}
    seat, fresh, epochs = _choose_seat(spec, brokers, near_node, deadline_s)
    registry.write_seat(spec.name, seat)
    start_controller(spec, seat, fresh=fresh, directory_epochs=epochs, deadline_s=deadline_s)
    return seat


def _broker(spec: ClusterSpec, node_id: str) -> Any:
    options = spawning.options(
        spawning.broker_name(spec.name, node_id), node_id, get_if_exists=True
    )
    return BrokerActorClass.options(**options).remote(packed(spec), node_id)


def _choose_seat(
    spec: ClusterSpec, brokers: dict[str, Any], near_node: str, deadline_s: float
) -> tuple[Seat, bool, list[int]]:
    """The controller's seat, whether its log is yet to be made, and all epochs seen."""
    in_use_s = time.monotonic() + spec.config.lock_timeout_ms / 1000
    surveys: dict[str, Survey] = {}
    while True:
        try:
            surveys = _surveys(brokers, deadline_s)
        except TimeoutExpiredError:
            if surveys:
                _give_up_in_time(spec, surveys, in_use_s, deadline_s)
            raise
        cluster_id = _one_cluster(surveys)
        if not cluster_id:
            return _make_cluster(spec.name, brokers, surveys, near_node, deadline_s)
        epochs = [one.controller_epoch for survey in surveys.values() for one in survey.directories]
        for node_id, survey in surveys.items():
            for found in survey.directories:
                unclaimed = _is_unclaimed(found, epochs)
                if found.locked and (found.has_metadata or unclaimed):
                    seat = Seat(
                        cluster_id=cluster_id,
                        node_id=node_id,
                        host_id=survey.host_id,
                        directory=found.path,
                    )
                    return seat, unclaimed, epochs
        _give_up_in_time(spec, surveys, in_use_s, deadline_s)
        time.sleep(POLL_S)


def _is_unclaimed(found: SeenDirectory, epochs: list[int]) -> bool:
    """Whether this is where a new cluster's first start was cut off.

    A controller writes its epoch into the identity before its first answer. So where no directory
    has seen one, nothing was ever acknowledged, and making the log loses nothing.
    """
    return found.directory_id == found.metadata_directory_id and max(epochs) < 0


def _surveys(brokers: dict[str, Any], deadline_s: float) -> dict[str, Survey]:
    asked = {node_id: broker.survey.remote() for node_id, broker in brokers.items()}
    surveys = {}
    for node_id, reference in asked.items():
        raw = answer_of(reference, deadline_s, "a node's survey of its data directory")
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
    name: str,
    brokers: dict[str, Any],
    surveys: dict[str, Survey],
    near_node: str,
    deadline_s: float,
) -> tuple[Seat, bool, list[int]]:
    begin = registry.founding(
        name,
        Founding(
            cluster_id=uuid.uuid4().hex,
            directory_id=uuid.uuid4().hex,
            node_id=near_node if near_node in brokers else next(iter(brokers)),
        ),
    )
    if begin.node_id not in brokers:
        raise DataDirError(
            f"cluster {name!r} was to begin on node {begin.node_id}, which is gone or was not "
            "chosen: stop the cluster (`ray-stream stop`), then start it again"
        )
    reference = brokers[begin.node_id].make_first_directory.remote(
        begin.cluster_id, begin.directory_id
    )
    path = answer_of(reference, deadline_s, "making the first data directory")
    seat = Seat(
        cluster_id=begin.cluster_id,
        node_id=begin.node_id,
        host_id=surveys[begin.node_id].host_id,
        directory=path,
    )
    return seat, True, []


def _give_up_in_time(
    spec: ClusterSpec, surveys: dict[str, Survey], in_use_s: float, deadline_s: float
) -> None:
    """Raise when the metadata log was waited for long enough."""
    found = [one for survey in surveys.values() for one in survey.directories]
    now = time.monotonic()
    for one in found:
        if one.has_metadata and now > in_use_s:
            raise DataDirInUseError(
                f"{one.path} is in use by {one.holder or 'another process'}: stop that cluster "
                "first (`ray-stream stop`), attach to it with its address, or give this one "
                "another data_dir"
            )
    if now > deadline_s:
        raise DataDirError(
            f"cluster {spec.name!r} has data here, but its metadata log is missing: "
            f"{_missing_place(found)}; bring it back; nothing is made in its place"
        )


def _missing_place(found: list[SeenDirectory]) -> str:
    for one in found:
        if one.directory_id == one.metadata_directory_id:
            return f"it was in {one.path}/{METADATA_NAME}"
    wanted = ", ".join(sorted({one.metadata_directory_id for one in found}))
    return f"it is in the directory {wanted}, which no node of this Ray sees"


def stop_cluster(name: str) -> list[str]:
    """Stop a cluster's actors, logs closed first; data stays. Returns the names of the ended."""
    registry.forget(name)
    ended = []
    # Consumers, while there is a group to commit to and leave. Then the controller: it would start
    # the others again. Brokers close their hosts' logs; what one was about to start is looked for
    # when it has ended.
    for prefix in (
        f"{name}/consumer/",
        f"{name}/controller",
        f"{name}/broker/",
        f"{name}/host/",
    ):
        names = spawning.living_actors(name)
        ended += _stop_all([one for one in names if one.startswith(prefix)])
    deadline_s = time.monotonic() + STOP_S
    while spawning.living_actors(name) and time.monotonic() < deadline_s:
        # A start that follows at once must not find actors that are about to end.
        time.sleep(POLL_S)
    return ended


def _stop_all(names: list[str]) -> list[str]:
    actors: dict[str, Any] = {}
    for name in names:
        actor: Any = spawning.find(name)
        if actor is not None:
            actors[name] = actor
    stops = {name: actor.stop.remote() for name, actor in actors.items()}
    deadline_s = time.monotonic() + STOP_S
    for name, reference in stops.items():
        # Whatever does not end in time is ended hard: recovery takes it from there.
        with contextlib.suppress(RayError, RayStreamError):
            answer_of(reference, deadline_s, f"stopping {name}")
        ray.kill(actors[name])
    return list(actors)
