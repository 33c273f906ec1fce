"""What an actor raised reaches a user as our error, on one line, without Ray's traceback."""

import traceback
from typing import Any

import pytest
from ray.exceptions import ActorUnschedulableError, RayTaskError

from ray_stream.actors.answers import raise_plain
from ray_stream.errors import ActorStartError, DataDirError


def raised_in_an_actor(cause: Exception) -> Any:  # noqa: ANN401 - a class that Ray makes up
    error = RayTaskError("start", "Traceback\n  line\nValueError: x", cause)  # type: ignore[no-untyped-call]
    return error.as_instanceof_cause()  # type: ignore[no-untyped-call]


def test_an_error_of_ours_is_raised_as_it_was_in_the_actor() -> None:
    with pytest.raises(DataDirError) as caught:
        raise_plain(raised_in_an_actor(DataDirError("no room")), "starting it")
    assert type(caught.value) is DataDirError
    assert caught.value.args == ("no room",)
    shown = "".join(traceback.format_exception(caught.value))
    assert "RayTaskError" not in shown.split("Traceback")[-1]
    assert caught.value.__suppress_context__


def test_any_other_error_is_told_in_one_line() -> None:
    with pytest.raises(ActorStartError) as caught:
        raise_plain(raised_in_an_actor(ValueError("two\nlines")), "starting it")
    assert str(caught.value) == "starting it failed: ValueError: two lines"


def test_an_actor_without_a_place_is_told_in_one_line() -> None:
    died = ActorUnschedulableError("no node\nhas such a label")
    with pytest.raises(ActorStartError) as caught:
        raise_plain(died, "starting it")
    assert str(caught.value) == f"starting it failed: {died}".replace("\n", " … ")
