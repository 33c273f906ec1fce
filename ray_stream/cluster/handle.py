"""`Cluster`: the handle that users hold, in any driver, task, actor or notebook.

Owns: joining the client to the Ray transport, and the handle's life. Refuses: everything that the
client does itself.

A handle pickles as (name, namespace, cluster id, address); a copy connects when it is first used,
and never owns.
"""

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import pyarrow as pa
import ray

from ray_stream.actors import bootstrap, registry
from ray_stream.actors.revival import revive_controller
from ray_stream.actors.spawning import NAMESPACE, ray_address
from ray_stream.actors.stubs import RayServices
from ray_stream.client.admin import Admin
from ray_stream.client.arguments import Topic
from ray_stream.client.calls import Deadline, call
from ray_stream.client.consumer import Consumer
from ray_stream.client.groups import GroupAdmin
from ray_stream.client.member import Member
from ray_stream.client.producer import Producer
from ray_stream.client.reading import read, read_batches
from ray_stream.clock import Clock, SystemClock
from ray_stream.cluster.consumer_group import ConsumerGroup, run
from ray_stream.cluster.embedded import join
from ray_stream.cluster.work import (
    BatchFormat,
    HandlerOptions,
    OnError,
    actor_options_of,
    actors_of,
    work_of,
)
from ray_stream.config import (
    ConsumerConfig,
    ConsumerOptions,
    ProducerConfig,
    ProducerOptions,
    TopicOptions,
    validated,
)
from ray_stream.errors import ClosedError, ForkedProcessError, RayNotRunningError, RayStreamError
from ray_stream.rpc.messages import MetadataRequest, MetadataResponse
from ray_stream.types import GroupDescription, StartPosition, TopicDescription, TopicPartition

TIMEOUT_S = 30.0


class Cluster:
    """A handle on one running cluster. Thread-safe; every method of a closed one raises.

    Made by `ray_stream.start` and `ray_stream.connect`.
    """

    def __init__(
        self,
        name: str,
        cluster_id: str,
        address: str,
        *,
        on_exit: Callable[[], None] | None = None,
        joins: bool = False,
    ) -> None:
        """Make a handle.

        Args:
            name: of the cluster.
            cluster_id: of its data.
            address: of its Ray.
            on_exit: run once when an owning handle is closed; None: this one only closes.
            joins: connect this process to that Ray at the first use, if it is to none.
        """
        self._name = name
        self._cluster_id = cluster_id
        self._address = address
        self._on_exit = on_exit
        self._joins = joins
        self._closed = False
        self._pid = os.getpid()
        self._clock = SystemClock()
        self._services = RayServices(name, self._revive)
        self._admin = Admin(self._services, self._clock)
        self._groups = GroupAdmin(self._services, self._clock)
        self._consuming: list[ConsumerGroup] = []

    # --- life ------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self._name

    @property
    def cluster_id(self) -> str:
        """The id in every data directory of the cluster."""
        return self._cluster_id

    @property
    def address(self) -> str:
        """Where its Ray is: `host:port` of the GCS."""
        return self._address

    @property
    def embedded(self) -> bool:
        """Whether this handle started its Ray, so that leaving its block stops everything."""
        return self._on_exit is not None

    @property
    def clock(self) -> Clock:
        """The clock of this handle's timeouts."""
        return self._clock

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            end_noting(self.close, error)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"Cluster(name={self._name!r}, address={self._address!r}, {state})"

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return (_copy_of, (self._name, NAMESPACE, self._cluster_id, self._address))

    def close(self) -> None:
        """Close this handle; on an embedded Ray that its `start` started, stop everything.

        Consumer actors that this handle has made end as `ConsumerGroup.stop` says. Data stays. A
        second call does nothing.

        Raises:
            TimeoutExpiredError: a handler did not return in time, and its actor was killed.
            RayNotRunningError: that Ray had ended already, so nothing could be stopped in order;
                what was acknowledged is on disk all the same.
        """
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return
        try:
            self._stop_groups()
        finally:
            if self._on_exit is not None:
                self._on_exit()

    def _stop_groups(self) -> None:
        """All of them, whatever becomes of one."""
        first: RayStreamError | None = None
        for group in self._consuming:
            try:
                group.stop()
            except RayStreamError as error:
                first = first or error
        if first is not None:
            raise first

    def shutdown(self) -> None:
        """Stop the cluster: its actors end, logs closed first; data stays, and so does Ray.

        On an embedded Ray that this handle's `start` started, that Ray ends too.

        Raises:
            RayNotRunningError: as `close`.
        """
        self._check()
        if self._on_exit is None:
            bootstrap.stop_cluster(self._name)
        self.close()

    # --- topics ----------------------------------------------------------------------------------

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        replication_factor: int = 1,
        *,
        exist_ok: bool = False,
        dedicated: bool = False,
        timeout: float | None = TIMEOUT_S,
        **config: Unpack[TopicOptions],
    ) -> None:
        """Make a topic; returns when every partition is served. See `Admin.create_topic`."""
        self._check()
        self._admin.create_topic(
            name,
            partitions,
            replication_factor,
            exist_ok=exist_ok,
            dedicated=dedicated,
            timeout=timeout,
            **config,
        )

    def topics(self, *, timeout: float | None = TIMEOUT_S) -> list[str]:
        """The names of all topics but internal ones, sorted."""
        self._check()
        return self._admin.topics(timeout=timeout)

    def describe_topic(self, name: str, *, timeout: float | None = TIMEOUT_S) -> TopicDescription:
        """One topic: config, where its partitions are served, their offsets."""
        self._check()
        return self._admin.describe_topic(name, timeout=timeout)

    def alter_topic(
        self,
        name: str,
        partitions: int | None = None,
        *,
        timeout: float | None = TIMEOUT_S,
        **config: Unpack[TopicOptions],
    ) -> None:
        """More partitions, other settings; returns when every partition serves with them."""
        self._check()
        self._admin.alter_topic(name, partitions, timeout=timeout, **config)

    def delete_topic(self, name: str, *, timeout: float | None = TIMEOUT_S) -> None:
        """Delete a topic and its records for good."""
        self._check()
        self._admin.delete_topic(name, timeout=timeout)

    # --- groups ----------------------------------------------------------------------------------

    def groups(self, *, timeout: float | None = TIMEOUT_S) -> list[str]:
        """The names of all consumer groups, sorted."""
        self._check()
        return self._groups.groups(timeout=timeout)

    def describe_group(self, name: str, *, timeout: float | None = TIMEOUT_S) -> GroupDescription:
        """One group: who reads what, committed offsets, lag. See `GroupAdmin.describe_group`."""
        self._check()
        return self._groups.describe_group(name, timeout=timeout)

    def describe_groups(self, *, timeout: float | None = TIMEOUT_S) -> list[GroupDescription]:
        """All groups, by name."""
        self._check()
        return self._groups.describe_groups(timeout=timeout)

    def reset_offsets(
        self, group: str, topic: str, to: StartPosition, *, timeout: float | None = TIMEOUT_S
    ) -> dict[TopicPartition, int]:
        """Let a group without members go on elsewhere. See `GroupAdmin.reset_offsets`."""
        self._check()
        return self._groups.reset_offsets(group, topic, to, timeout=timeout)

    def delete_group(self, name: str, *, timeout: float | None = TIMEOUT_S) -> None:
        """Forget a group without members, and its committed offsets."""
        self._check()
        self._groups.delete_group(name, timeout=timeout)

    # --- records ---------------------------------------------------------------------------------

    def producer(self, **options: Unpack[ProducerOptions]) -> Producer:
        """A producer; use it in a `with` block. Options: `ProducerConfig`."""
        self._check()
        config = validated(ProducerConfig, options, "producer")
        return Producer(self._services, config, clock=self._clock, cluster=self._name)

    def consumer(self, *topics: Topic, **options: Unpack[ConsumerOptions]) -> Consumer:
        """A consumer of these topics: names, or compiled patterns that match whole names.

        With a pattern, topics that appear later are read as well. With no topics at all: `assign`
        or `subscribe` comes next. Options: `ConsumerConfig`.
        """
        self._check()
        config = validated(ConsumerConfig, options, "consumer")
        return self._member(topics, config, f"{platform.node()}:{os.getpid()}")

    def _member(self, topics: Iterable[Topic], config: ConsumerConfig, client_id: str) -> Consumer:
        """A consumer, with its place in the group if it names one; `client_id` is shown there."""
        membership = None
        if config.group is not None:
            membership = Member(
                self._services,
                config,
                self._clock,
                node_id=ray.get_runtime_context().get_node_id(),
                client_id=client_id,
            )
        return Consumer(
            self._services,
            topics,
            config,
            clock=self._clock,
            cluster=self._name,
            membership=membership,
        )

    def run_consumers(
        self,
        handler: Callable[..., Any],
        *,
        topics: str | Iterable[Topic],
        group: str,
        actors: int = 1,
        batch_format: BatchFormat = "records",
        max_records: int = 500,
        constructor_args: tuple[Any, ...] = (),
        ray_actor_options: Mapping[str, Any] | None = None,
        on_error: OnError = "stop",
        **options: Unpack[HandlerOptions],
    ) -> ConsumerGroup:
        """Start actors that consume topics together, as one group.

        Each takes a batch, calls the handler, and commits when that has returned: at least once. A
        dead actor is replaced, and its partitions move. The actors belong to this process.

        Args:
            handler: a function of one batch; or a class, made once in each actor, whose objects are
                such functions.
            topics: names, or compiled patterns.
            group: its name; whoever consumes under the same one shares the partitions.
            actors: how many; those beyond the number of partitions are idle.
            batch_format: a list of `Record`, a `pyarrow.Table`, or a `pandas.DataFrame`.
            max_records: a batch has at most so many.
            constructor_args: of the handler's class.
            ray_actor_options: resources, labels, `runtime_env` …; `num_cpus` is 0 by default.
            on_error: when the handler raises: `"stop"` ends the group with that error, `"retry"`
                gives it the same records again, `"skip"` goes on behind the batch.
            **options: of the consumers, as `ConsumerConfig`.

        Raises:
            InvalidArgumentError, UnknownOptionError, InvalidConfigError: about one argument.
            UnknownTopicOrPartitionError: a topic is not there.
        """
        self._check()
        count = actors_of(actors)
        actor_options = actor_options_of(ray_actor_options)
        work = work_of(
            handler,
            topics,
            group,
            batch_format=batch_format,
            max_records=max_records,
            constructor_args=constructor_args,
            on_error=on_error,
            options=options,
        )
        made = run(self, work, count, actor_options)
        self._consuming.append(made)
        return made

    def read(
        self,
        topic: str,
        start: StartPosition = "earliest",
        end: StartPosition = "latest",
        partitions: list[int] | None = None,
        max_bytes: int | None = None,
    ) -> pa.Table:
        """Everything between two positions as one table; the end is fixed when it begins."""
        self._check()
        return read(self._services, self._clock, topic, start, end, partitions, max_bytes)

    def read_batches(
        self,
        topic: str,
        start: StartPosition = "earliest",
        end: StartPosition = "latest",
        partitions: list[int] | None = None,
        max_bytes: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """As `read`, a batch at a time."""
        self._check()
        return read_batches(self._services, self._clock, topic, start, end, partitions, max_bytes)

    # --- within ----------------------------------------------------------------------------------

    def metadata(
        self, timeout: float | None = TIMEOUT_S, *, topics: list[str] | None = None
    ) -> MetadataResponse:
        """Topics (None: all), partitions and brokers as the controller sees them."""
        self._check()
        answer: MetadataResponse = call(
            self._services.controller.metadata,
            MetadataRequest(topics),
            deadline=Deadline(self._clock, timeout),
            what="asking the controller for metadata",
        )
        return answer

    def _check(self) -> None:
        self._check_open()
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                "this handle was made before a fork; call ray_stream.connect() in the child"
            )
        if self._joins:
            self._joins = False
            join(self._address)
        here = ray_address()
        if here != self._address:
            raise RayNotRunningError(
                f"cluster {self._name!r} is in the Ray at {self._address}, and this process is "
                f"connected to the one at {here} now: make a new handle with ray_stream.connect()"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(
                f"this handle on cluster {self._name!r} was closed: "
                "make a new one with ray_stream.connect()"
            )

    def _revive(self) -> None:
        spec = registry.read_spec(self._name)
        if spec is not None:
            revive_controller(spec, None)


def end_noting(end: Callable[[], None], error: BaseException) -> None:
    """End something because of `error`, which stays what is told; it notes what went wrong here."""
    try:
        end()
    except RayStreamError as gone:
        if not (isinstance(gone, RayNotRunningError) and isinstance(error, RayNotRunningError)):
            error.add_note(str(gone))


def _copy_of(name: str, namespace: str, cluster_id: str, address: str) -> Cluster:
    """A handle unpickled in another process: it connects when it is first used; it never owns."""
    del namespace
    return Cluster(name, cluster_id, address, joins=True)
