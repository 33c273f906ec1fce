"""`ConsumerGroup`: the handle on consumer actors, for the process that made them.

Owns: what users see of them, waiting so that Ctrl-C ends it, and ending with the process. Refuses:
the actors (`crew`), deciding about them (`supervision`).
"""

import atexit
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pickle import PicklingError
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import ray

from ray_stream.actors.spawning import alive_nodes
from ray_stream.client.arguments import subscription_of
from ray_stream.client.calls import TIMEOUT_MAX_S, Deadline, check_timeout, pause
from ray_stream.clock import Clock
from ray_stream.cluster.crew import Crew, Member, Plan, View
from ray_stream.cluster.supervision import Limits, Phase
from ray_stream.cluster.work import Work, actors_of
from ray_stream.config import ConsumerConfig, validated
from ray_stream.errors import (
    ClosedError,
    GroupIdNotFoundError,
    InvalidArgumentError,
    RayStreamError,
    TimeoutExpiredError,
    UnknownMemberIdError,
)
from ray_stream.types import (
    ConsumerActorStatus,
    ConsumerGroupStatus,
    GroupDescription,
    TopicPartition,
)

if TYPE_CHECKING:
    from ray_stream.cluster.handle import Cluster

STOP_S = 30.0
EXIT_STOP_S = 10.0
"""How long a process that ends waits for its groups' handlers."""
GRACE_S = 5.0
"""Beyond its time-out: for actors that are killed to be gone."""
LOOK_MS = 100
LAG_S = 5.0
PLACING_S = 2.0
"""An actor that has not answered for so long since it was asked for is pending."""
HANGS_S = 30.0
SILENT_S = 5.0

Describe = Callable[[float], GroupDescription]
"""The group, as its coordinator describes it within so many seconds."""


class ConsumerGroup:
    """Consumer actors that share topics; made by `Cluster.run_consumers`.

    They belong to this process and end with it. Thread-safe. Leaving its `with` block stops it.
    """

    def __init__(
        self,
        group: str,
        crew: Crew,
        describe: Describe,
        needs: Mapping[str, Any],
        clock: Clock,
        hangs_s: float = HANGS_S,
    ) -> None:
        """Take charge of a crew that has begun.

        Args:
            group: its name.
            crew: its actors.
            describe: asks the coordinator about the group.
            needs: what each actor needs of Ray.
            clock: for timeouts.
            hangs_s: a handler that has not returned for so long is called hanging.
        """
        self._group = group
        self._crew = crew
        self._describe = describe
        self._needs = {name: value for name, value in needs.items() if value}
        self._hangs_s = hangs_s
        self._clock = clock
        _watch(self)

    @property
    def name(self) -> str:
        """The group's name."""
        return self._group

    @property
    def is_over(self) -> bool:
        """Whether it was stopped or failed, and no actor of it is left."""
        return self._crew.over.is_set()

    def scale(self, actors: int) -> None:
        """Have so many actors from now on; returns at once.

        New ones get partitions as soon as their present owners have released them. Those that are
        too many finish the batch in hand, commit, and leave.

        Raises:
            InvalidArgumentError: not a number from 1 on.
            ClosedError: the group was stopped.
        """
        wanted = actors_of(actors)
        self._check_failed()
        if self._crew.view().state != "running":
            raise ClosedError(f"group {self._group!r} was stopped: call run_consumers() again")
        self._crew.scale(wanted)

    def status(self, timeout: float = LAG_S) -> ConsumerGroupStatus:
        """How it is now.

        Args:
            timeout: seconds to wait for the lag; what nobody tells in time is left out. 0: does
                not ask for it.
        """
        lag = self._lag(timeout) if check_timeout(timeout) else {}
        view = self._crew.view()
        return ConsumerGroupStatus(
            group=self._group,
            state=view.state,
            wanted=view.wanted,
            members=tuple(self._member(number, view) for number in sorted(view.members)),
            lag=lag,
            records=view.totals.records,
            rate=view.rate,
            restarts=view.restarts,
            errors=view.totals.errors,
            skipped=view.totals.skipped,
            results_dropped=view.totals.dropped + self._crew.results.dropped,
            last_error=str(self._crew.error or view.totals.last_error),
        )

    def wait(self, idle: float = 1.0, timeout: float | None = None) -> None:
        """Wait until everything was handled: lag 0, and no handler ran for a while.

        Args:
            idle: that while, in seconds.
            timeout: seconds; None waits for ever.

        Raises:
            HandlerError: a handler raised, with `on_error="stop"`.
            ConsumerActorError: actors do not come up, or do not stay up.
            TimeoutExpiredError: there was still something to do.
            ClosedError: the group was stopped meanwhile, with something left.
        """
        idle_ms = math.ceil(check_timeout(idle) * 1000)
        deadline = None if timeout is None else Deadline(self._clock, timeout)
        since_ms, batches = self._clock.monotonic_ms(), -1
        while True:
            self._check_failed()
            seen = self._batches()
            if seen != batches:
                since_ms, batches = self._clock.monotonic_ms(), seen
            done = self._is_done()
            if done and self._clock.monotonic_ms() - since_ms >= idle_ms:
                return
            if self.is_over:
                self._check_failed()
                self._say_closed(done)
                return
            if deadline is not None and not deadline.left_ms():
                self._time_out(deadline)
            pause(LOOK_MS if deadline is None else min(LOOK_MS, deadline.left_ms()))

    def results(self) -> Iterator[Any]:
        """What handlers returned but None, as it comes; ends when the group was stopped.

        64 MiB are kept; beyond that the oldest are dropped, which `status().results_dropped`
        counts. A batch is committed when its result has arrived here: a result that is missing
        belongs to a batch that is handled again, so results may come twice.

        Raises:
            HandlerError, ConsumerActorError: at the end, if the group failed.
        """
        return self._crew.results.each(self._check_failed)

    def stop(self, timeout: float | None = STOP_S) -> None:
        """Stop: every actor finishes the batch in hand, commits, leaves, and ends.

        A second call does nothing. What an actor has not finished is handled again by whoever
        consumes in this group next.

        Args:
            timeout: seconds; actors that are not done then are killed. None: however long it takes.

        Raises:
            TimeoutExpiredError: some were killed; the message names them.
        """
        within_s = TIMEOUT_MAX_S if timeout is None else check_timeout(timeout)
        if self.is_over:
            return
        self._crew.stop(math.ceil(within_s * 1000))
        self._crew.over.wait(within_s + GRACE_S)
        if self._crew.overdue:
            raise TimeoutExpiredError(
                f"{len(self._crew.overdue)} consumer actors did not end what they had in hand "
                f"within {within_s:g} s and were killed ({', '.join(self._crew.overdue)}): it is "
                "not committed, and handled again by whoever consumes in this group next"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except RayStreamError as failed:
            if error is None:
                raise
            error.add_note(str(failed))
        if error is None:
            self._check_failed()

    def __repr__(self) -> str:
        view = self._crew.view()
        return f"<ConsumerGroup {self._group!r}, {view.state}, {len(view.members)} actors>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            "a ConsumerGroup belongs to the process that made it: elsewhere, "
            "cluster.describe_group() tells how the group is"
        )

    # --- within --------------------------------------------------------------------------------

    def _check_failed(self) -> None:
        error = self._crew.error
        if error is not None:
            raise error.with_traceback(None)  # it may be told many times

    def _lag(self, timeout: float) -> dict[TopicPartition, int]:
        try:
            return self._describe(timeout).lag
        except RayStreamError:  # nobody joined yet, nothing answers, the cluster is gone: no lag
            return {}

    def _batches(self) -> int:
        """Changes whenever a handler has run."""
        view = self._crew.view()
        reports = [one.report for one in view.members.values() if one.report is not None]
        busy = sum(one.busy_ms >= 0 for one in reports)
        return view.totals.records + view.totals.skipped + view.totals.errors + busy

    def _is_done(self) -> bool:
        """Whether all partitions are owned by somebody and nothing is left in any."""
        try:
            described = self._describe(LAG_S)
        except (GroupIdNotFoundError, TimeoutExpiredError):
            return False
        return bool(described.members) and all(
            one.lag == 0 or (one.committed is None and one.end_offset == 0)
            for one in described.partitions
        )

    def _say_closed(self, done: bool) -> None:
        if not done:
            raise ClosedError(
                f"group {self._group!r} was stopped before everything was handled: "
                "run_consumers() goes on where it stood"
            )

    def _time_out(self, deadline: Deadline) -> NoReturn:
        raise TimeoutExpiredError(
            f"group {self._group!r} was not done within {deadline.timeout_s:g} s: "
            f"{self.status(timeout=1.0)}"
        )

    def _member(self, number: int, view: View) -> ConsumerActorStatus:
        member = view.members[number]
        report = member.report
        if report is None:
            return ConsumerActorStatus(member.name, self._unheard(member), (), 0, 0.0, 0, "", "")
        silent_s = (self._clock.monotonic_ms() - member.heard_ms) / 1000
        busy_s = max(0, report.busy_ms) / 1000 + (silent_s if report.busy_ms >= 0 else 0)
        partitions = tuple(TopicPartition(*one) for one in report.partitions)
        if silent_s >= SILENT_S:
            state = f"silent: no sign of life for {silent_s:.0f} s"
        elif busy_s >= self._hangs_s:
            state = f"hangs: its handler has not returned for {busy_s:.0f} s"
        elif number in view.leaving:
            state = "leaving"
        elif report.phase == Phase.STARTING:
            state = "starting"
        elif report.busy_ms >= 0:
            state = "handling"
        else:
            state = "waiting" if partitions else "idle"
        return ConsumerActorStatus(
            name=member.name,
            state=state,
            partitions=partitions,
            records=report.records,
            busy_s=busy_s,
            pid=report.pid,
            node_id=report.node_id,
            last_error=report.last_error,
        )

    def _unheard(self, member: Member) -> str:
        """Its process is starting, or Ray does not place it, in silence."""
        since_s = (self._clock.monotonic_ms() - member.begun_ms) / 1000
        if since_s < PLACING_S or not self._needs:
            return "starting"
        return f"pending: needs {self._needs}, {_why_pending(self._needs)}"


def _why_pending(needs: Mapping[str, Any]) -> str:
    resources = {
        "CPU": needs.get("num_cpus", 0),
        "GPU": needs.get("num_gpus", 0),
        "memory": needs.get("memory", 0),
        **needs.get("resources", {}),
    }
    labels = needs.get("label_selector", {})
    nodes = list(alive_nodes().values())
    able = [
        one
        for one in nodes
        if all(one["Resources"].get(name, 0) >= count for name, count in resources.items())
        and all(_matches(one["Labels"].get(key), wanted) for key, wanted in labels.items())
    ]
    if able:
        return f"which {len(able)} of {len(nodes)} Ray nodes have, but not free"
    return f"which none of the {len(nodes)} Ray nodes has"


def _matches(label: str | None, wanted: str) -> bool:
    """Ray's label selectors: a value, `!value`, `in(…)`, `!in(…)`."""
    negated, text = wanted.startswith("!"), wanted.removeprefix("!")
    if text.startswith("in(") and text.endswith(")"):
        values = [one.strip() for one in text[3:-1].split(",")]
    else:
        values = [text]
    return (label in values) != negated


def run(
    cluster: "Cluster", work: Work, actors: int, actor_options: dict[str, Any]
) -> ConsumerGroup:
    """Start consumer actors.

    Args:
        cluster: an open handle, which travels to the actors.
        work: what they do.
        actors: how many.
        actor_options: of Ray, for each.

    Raises:
        InvalidArgumentError: what cannot be pickled, or Ray does not know.
        UnknownTopicOrPartitionError: a topic is not there.
    """
    config = validated(ConsumerConfig, work.options, "run_consumers()")
    for name in work.topics:
        if isinstance(name, str):
            cluster.describe_topic(name)
    try:
        job = ray.put((cluster, work))
    except (TypeError, ValueError, AttributeError, PicklingError) as error:
        raise InvalidArgumentError(
            f"the handler, or what it was given, cannot be sent to actors: {error}"
        ) from error
    limits = Limits(
        silence_ms=config.session_timeout_ms,
        stop_ms=config.max_poll_interval_ms,
        forgives_crashes=work.on_error == "retry",
    )
    crew = Crew(Plan(cluster.name, work.group, job, actor_options, limits), cluster.clock)

    def describe(timeout: float) -> GroupDescription:
        return cluster.describe_group(work.group, timeout=timeout)

    _fix_latest(cluster, work)
    crew.begin(actors)
    hangs_s = min(HANGS_S, config.max_poll_interval_ms / 1000)
    return ConsumerGroup(work.group, crew, describe, actor_options, cluster.clock, hangs_s)


def _fix_latest(cluster: "Cluster", work: Work) -> None:
    """Have "latest" mean now: what is written from here on is handled, however long a start takes.

    In a group that has members, or has read a partition before, they have said where it begins.
    """
    if work.options.get("auto_offset_reset", "latest") != "latest":
        return
    wanted = subscription_of(work.topics)
    partitions = [
        TopicPartition(topic.name, one.partition)
        for topic in cluster.metadata().topics
        if wanted.covers(topic.name)
        for one in topic.partitions
    ]
    options = {**work.options, "on_assigned": None, "on_revoked": None}
    with cluster.consumer(group=work.group, enable_auto_commit=False, **options) as consumer:
        stored = consumer.committed(partitions)
        consumer.assign([one for one, offset in stored.items() if offset is None])
        with suppress(UnknownMemberIdError):
            consumer.commit()


# --- the end of the process --------------------------------------------------------------------

_groups: list[ConsumerGroup] = []
"""Those that have not ended: a group belongs to the process, whoever still holds it."""


def _watch(group: ConsumerGroup) -> None:
    _groups[:] = [one for one in _groups if not one.is_over]
    _groups.append(group)
    _register()


@lru_cache(maxsize=1)
def _register() -> None:
    # Behind Ray's own hook, so it runs before that: the actors are still there.
    atexit.register(_stop_all)


def _stop_all() -> None:
    for group in _groups:
        if group.is_over or not ray.is_initialized():
            continue
        try:
            group.stop(EXIT_STOP_S)
        except RayStreamError as error:
            warnings.warn(f"at the exit: {error}", RuntimeWarning, stacklevel=2)
