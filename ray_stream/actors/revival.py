"""Bringing up a controller where there is none: on the node that sees the metadata log.

Owns: the choice of the node, and the start. Refuses: a cluster without a seat (`bootstrap` makes
one). Two that try at once get the same actor (`get_if_exists`), and its start is done once; the
log's lock keeps out a second one.
"""

import logging
import time
from pathlib import Path

from ray.exceptions import RayError

from ray_stream.actors import registry, spawning
from ray_stream.actors.answers import answer_of
from ray_stream.actors.boot import host_id
from ray_stream.actors.settings import ClusterSpec, Seat, packed
from ray_stream.errors import TimeoutExpiredError

LOG = logging.getLogger(__name__)


def revive_controller(spec: ClusterSpec, node_id: str | None) -> bool:
    """Start a controller unless one lives; say whether one runs now.

    Args:
        spec: the cluster's.
        node_id: the caller's node, when it may take the seat itself (a broker's).
    """
    seat = registry.read_seat(spec.name)
    if seat is None:
        return False
    place = _place(seat, node_id)
    if place is None:
        return False
    try:
        _start_broker(spec, place.node_id)
        start_controller(
            spec,
            place,
            fresh=False,
            directory_epochs=[],
            deadline_s=time.monotonic() + spec.config.start_timeout_ms / 1000,
        )
    except (RayError, TimeoutExpiredError) as error:
        LOG.warning("the controller could not be started: %s", error)
        return False
    return True


def start_controller(
    spec: ClusterSpec, seat: Seat, *, fresh: bool, directory_epochs: list[int], deadline_s: float
) -> None:
    """Start the controller on its seat and wait until it claimed its epoch.

    Raises:
        RayError: it could not be placed, or its start failed.
        TimeoutExpiredError: not done by `deadline_s`, on the monotonic clock.
    """
    # The controller and its brokers start each other, so one of the two imports is made late.
    from ray_stream.actors.controller import ControllerActorClass  # noqa: PLC0415

    options = spawning.options(
        spawning.controller_name(spec.name), seat.node_id, get_if_exists=True
    )
    actor = ControllerActorClass.options(**options).remote(
        packed(spec), packed(seat), fresh, directory_epochs
    )
    answer_of(actor.start.remote(), deadline_s, "the controller's start")


def _start_broker(spec: ClusterSpec, node_id: str) -> None:
    """Have the broker's process start beside the controller's, where both were lost.

    It is made only: the controller finds it, and tells it to begin.
    """
    from ray_stream.actors.broker import BrokerActorClass  # noqa: PLC0415 - as the controller's

    options = spawning.options(
        spawning.broker_name(spec.name, node_id), node_id, get_if_exists=True
    )
    BrokerActorClass.options(**options).remote(packed(spec), node_id)


def _place(seat: Seat, node_id: str | None) -> Seat | None:
    """The seat, on its node if that lives, else on the caller's if it sees the same directory."""
    if seat.node_id in spawning.alive_nodes():
        return seat
    if node_id is None or seat.host_id != host_id() or not Path(seat.directory).is_dir():
        return None
    return Seat(
        cluster_id=seat.cluster_id,
        node_id=node_id,
        host_id=seat.host_id,
        directory=seat.directory,
    )
