"""What `run_consumers` refuses, and how it says so."""

from collections.abc import Callable
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.cluster.work import actor_options_of, actors_of, work_of


def work(
    handler: object = print, topics: object = "t", group: object = "g", **arguments: object
) -> Any:  # noqa: ANN401
    chosen: dict[str, Any] = {
        "batch_format": "records",
        "max_records": 500,
        "constructor_args": (),
        "on_error": "stop",
        "options": {},
        **arguments,
    }
    return work_of(handler, topics, group, **chosen)


class Handler:
    def __init__(self, *arguments: int) -> None:
        self.arguments = arguments

    def __call__(self, batch: object) -> None:
        """Nothing."""


class NoHandler:
    """Its objects cannot be called."""


REFUSED: dict[str, tuple[Callable[[], object], type[errors.RayStreamError], str]] = {
    "no handler": (lambda: work(None), errors.InvalidArgumentError, "None cannot be called"),
    "class": (lambda: work(NoHandler), errors.InvalidArgumentError, "class without __call__"),
    "arguments": (
        lambda: work(constructor_args=(1,)), errors.InvalidArgumentError, "is a function",
    ),
    "no tuple": (
        lambda: work(Handler, constructor_args="ab"), errors.InvalidArgumentError, "a tuple",
    ),
    "format": (
        lambda: work(batch_format="panda"), errors.InvalidArgumentError, "did you mean 'pandas'",
    ),
    "on_error": (
        lambda: work(on_error="stopp"), errors.InvalidArgumentError, "did you mean 'stop'",
    ),
    "size": (lambda: work(max_records=0), errors.InvalidArgumentError, "max_records=0"),
    "no topics": (lambda: work(topics=[]), errors.InvalidArgumentError, "names none"),
    "topics": (lambda: work(topics=7), errors.InvalidArgumentError, "topics=7"),
    "topic": (lambda: work(topics=["a b"]), errors.InvalidTopicError, "'a b'"),
    "group": (lambda: work(group=""), errors.InvalidGroupIdError, "group"),
    "no group": (lambda: work(group=None), errors.InvalidGroupIdError, "group"),
    "option": (
        lambda: work(options={"max_records_": 1}), errors.UnknownOptionError, "run_consumers",
    ),
    "nearest": (
        lambda: work(options={"session_timeout": 1}), errors.UnknownOptionError,
        "did you mean 'session_timeout_ms'",
    ),
    "range": (
        lambda: work(options={"session_timeout_ms": 0}), errors.InvalidConfigError,
        "session_timeout_ms=0",
    ),
    "auto-commit": (
        lambda: work(options={"enable_auto_commit": True}), errors.UnknownOptionError,
        "when the handler has returned",
    ),
    "deserializer": (
        lambda: work(batch_format="arrow", options={"value_deserializer": str}),
        errors.InvalidArgumentError, "stored bytes",
    ),
    "actors=0": (lambda: actors_of(0), errors.InvalidArgumentError, "consume nothing"),
    "actors=-1": (lambda: actors_of(-1), errors.InvalidArgumentError, "actors=-1"),
    "actors=True": (lambda: actors_of(True), errors.InvalidArgumentError, "actors=True"),
    "lifetime": (
        lambda: actor_options_of({"lifetime": "detached"}), errors.InvalidArgumentError,
        "'lifetime' is set by ray_stream",
    ),
    "no dict": (lambda: actor_options_of(3), errors.InvalidArgumentError, "a dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line_that_names_it(case: str) -> None:
    call, kind, text = REFUSED[case]
    with pytest.raises(kind) as refused:
        call()
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def test_actors_take_no_cpu_unless_they_are_told_to() -> None:
    assert actor_options_of(None) == {"num_cpus": 0}
    assert actor_options_of({"num_gpus": 1}) == {"num_cpus": 0, "num_gpus": 1}
    assert actor_options_of({"num_cpus": 2}) == {"num_cpus": 2}


def test_a_class_is_built_and_a_function_is_called() -> None:
    assert work(Handler, constructor_args=[1, 2]).is_class
    assert work(Handler, constructor_args=[1, 2]).constructor_args == (1, 2)
    assert not work(Handler()).is_class
    assert work(topics="one").topics == ("one",)
