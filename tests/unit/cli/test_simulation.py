"""`sim`: what a person is told of seeds that hold and of one that does not."""

import pytest
from click.testing import CliRunner, Result

from ray_stream.cli.application import application
from ray_stream.testing import simulation
from ray_stream.testing.simulation import Report


def run(*arguments: str) -> Result:
    return CliRunner().invoke(application, ["sim", *arguments])


@pytest.mark.sim
def test_a_seed_that_holds_is_reported_with_its_digest() -> None:
    report = simulation.run(3)
    for text in ("3", "0x3"):
        result = run("--seed", text)
        assert result.exit_code == 0
        assert report.digest in result.stdout


@pytest.mark.sim
def test_a_trace_is_every_event_in_order() -> None:
    lines: list[str] = []
    simulation.run(3, sink=lines.append)
    assert run("--seed", "3", "--trace").stdout.splitlines()[: len(lines)] == lines


def test_a_broken_promise_is_named_with_the_line_that_runs_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(seed: int, **_: object) -> Report:
        violations = ["I8: the readable end of partition 0 went back"] if seed == 1 else []
        return Report(seed, "digest", 10, 1, 5, 0, violations, ["the last event"])

    monkeypatch.setattr(simulation, "run", broken)
    result = run("--seeds", "3")
    assert result.exit_code == 1
    assert "I8: the readable end of partition 0 went back" in result.stdout
    assert "the last event" in result.stdout
    assert "again: ray-stream sim --seed 1\n" in result.stdout
    assert result.stderr == "2 of 3 seeds kept every promise\n"


def test_a_trace_of_many_seeds_is_refused() -> None:
    assert run("--seeds", "2", "--trace").exit_code == 2
