"""What a group of consumer actors is to do, as its user said it, checked.

Owns: the arguments of `run_consumers`, and errors that name them. Refuses: doing it (`worker`),
options of consumers (`config` checks those).
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from ray_stream.client.arguments import Topic, count_of, subscription_of
from ray_stream.config import ConsumerConfig, Serializer, validated
from ray_stream.errors import InvalidArgumentError, UnknownOptionError
from ray_stream.groups.limits import check_name
from ray_stream.types import TopicPartition

BatchFormat = Literal["records", "arrow", "pandas"]
OnError = Literal["stop", "retry", "skip"]
ACTORS_MAX = 10_000
OURS = (
    "allow_out_of_order_execution",
    "concurrency_groups",
    "get_if_exists",
    "lifetime",
    "max_concurrency",
    "max_pending_calls",
    "max_restarts",
    "max_task_retries",
    "name",
    "namespace",
)
"""Options of Ray's actors that a consumer actor depends on."""
_NOT_HERE = {
    "group": "it is an argument of run_consumers() itself",
    "enable_auto_commit": "offsets are committed each time when the handler has returned",
    "auto_commit_interval_ms": "offsets are committed each time when the handler has returned",
    "max_poll_records": "max_records says how much a handler is given",
    "group_instance_id": "each actor is a member of its own",
    "until": "wait(idle=…) returns when everything was handled",
}
"""Options of consumers that mean nothing here."""


class HandlerOptions(TypedDict, total=False):
    """What `Cluster.run_consumers` hands on to each consumer; see `ConsumerConfig`."""

    auto_offset_reset: Literal["latest", "earliest", "error"]
    isolation_level: Literal["read_committed", "read_uncommitted"]
    fetch_min_bytes: int
    fetch_max_wait_ms: int
    fetch_max_bytes: int
    max_poll_interval_ms: int
    session_timeout_ms: int
    request_timeout_ms: int
    retry_backoff_ms: int
    client_rack: str | None
    key_deserializer: Serializer
    value_deserializer: Serializer
    on_assigned: Callable[[list[TopicPartition]], None] | None
    on_revoked: Callable[[list[TopicPartition]], None] | None


_BYTES_ONLY = ("key_deserializer", "value_deserializer")


@dataclass(frozen=True, slots=True)
class Work:
    """What each actor of a group does. It travels to them as Ray pickles it."""

    handler: Callable[..., Any]
    """A function of one batch, or a class whose objects are such functions."""
    constructor_args: tuple[Any, ...]
    topics: tuple[Topic, ...]
    group: str
    batch_format: BatchFormat
    max_records: int
    on_error: OnError
    options: Mapping[str, Any]
    """Of the consumers."""

    @property
    def is_class(self) -> bool:
        """Whether the handler has to be built first."""
        return isinstance(self.handler, type)


def work_of(
    handler: object,
    topics: object,
    group: object,
    *,
    batch_format: object,
    max_records: object,
    constructor_args: object,
    on_error: object,
    options: Mapping[str, Any],
) -> Work:
    """The arguments of `run_consumers`, checked.

    Raises:
        InvalidArgumentError, InvalidGroupIdError, InvalidTopicError: one cannot be used.
        UnknownOptionError, InvalidConfigError: about one option.
    """
    kind = _handler(handler)
    arguments = _arguments(constructor_args, kind)
    form = _one_of("batch_format", batch_format, BatchFormat)
    wanted = _topics(topics)
    check_name(group if isinstance(group, str) else "", "group")
    _check_options(options, form)
    return Work(
        handler=kind,
        constructor_args=arguments,
        topics=wanted,
        group=str(group),
        batch_format=form,
        max_records=count_of("max_records", max_records),
        on_error=_one_of("on_error", on_error, OnError),
        options=dict(options),
    )


def _handler(handler: object) -> Callable[..., Any]:
    if not callable(handler):
        raise InvalidArgumentError(
            f"handler={handler!r} cannot be called: give a function of one batch, or a class whose "
            "objects can be called with one"
        )
    if isinstance(handler, type) and "__call__" not in dir(handler):
        raise InvalidArgumentError(
            f"handler={handler.__name__} is a class without __call__: its objects are called with "
            "each batch"
        )
    return handler


def _arguments(constructor_args: object, handler: Callable[..., Any]) -> tuple[Any, ...]:
    if isinstance(constructor_args, str | bytes) or not isinstance(constructor_args, Sequence):
        raise InvalidArgumentError(
            f"constructor_args={constructor_args!r}: a tuple of arguments is needed"
        )
    if constructor_args and not isinstance(handler, type):
        raise InvalidArgumentError(
            "constructor_args are for a handler that is a class, and this one is a function: "
            "give the class, or functools.partial(function, …)"
        )
    return tuple(constructor_args)


def _topics(topics: object) -> tuple[Topic, ...]:
    if not isinstance(topics, str | re.Pattern | Iterable):
        raise InvalidArgumentError(f"topics={topics!r}: a list of names or patterns is needed")
    given = [topics] if isinstance(topics, str | re.Pattern) else list(topics)
    if not given:
        raise InvalidArgumentError("topics=[] names none: give at least one")
    wanted = subscription_of(given)
    return (*wanted.names, *wanted.patterns)


def _check_options(options: Mapping[str, Any], batch_format: str) -> None:
    for name, reason in _NOT_HERE.items():
        if name in options:
            raise UnknownOptionError(f"{name}={options[name]!r} of run_consumers(): {reason}")
    if batch_format != "records":
        for name in _BYTES_ONLY:
            if options.get(name) is not None:
                raise InvalidArgumentError(
                    f"{name} applies to records, and batch_format={batch_format!r} has the stored "
                    "bytes: decode in the handler, or leave batch_format out"
                )
    validated(ConsumerConfig, options, "run_consumers()")


def _one_of(name: str, value: object, choices: Any) -> Any:
    valid = get_args(choices)
    if value not in valid:
        near = difflib.get_close_matches(str(value), valid, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        named = ", ".join(map(repr, valid))
        raise InvalidArgumentError(f"{name}={value!r}{hint}: {named} are valid")
    return value


def actors_of(actors: object) -> int:
    """How many actors.

    Raises:
        InvalidArgumentError: not a number from 1 on.
    """
    if actors == 0 and not isinstance(actors, bool):
        raise InvalidArgumentError(
            "actors=0 would consume nothing: 1 or more are needed; stop() ends the group"
        )
    if count_of("actors", actors) > ACTORS_MAX:
        raise InvalidArgumentError(f"actors={actors!r}: at most {ACTORS_MAX} are supported")
    assert isinstance(actors, int)
    return actors


def actor_options_of(given: object) -> dict[str, Any]:
    """Options of Ray for each actor, without those that are ours; `num_cpus` is 0 by default.

    Raises:
        InvalidArgumentError: not a dict, or one that cannot be chosen.
    """
    if given is None:
        return {"num_cpus": 0}
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(
            f"ray_actor_options={given!r}: a dict such as {{'num_cpus': 1}} is needed"
        )
    for name in OURS:
        if name in given:
            raise InvalidArgumentError(
                f"ray_actor_options: {name!r} is set by ray_stream; resources, labels, "
                "scheduling_strategy and runtime_env are yours"
            )
    return {"num_cpus": 0, **given}
