"""The judge of handlers finds each planted fault, and lets what is promised pass."""

from pathlib import Path

from ray_stream.testing.handled import Handled, judge_handled, note, read_notes


def run(member: str, call: int, first: int, following: int, at_s: float) -> Handled:
    return Handled(member, call, 0, first, following, following - first, at_s)


STEADY = [run("a", 0, 0, 10, 1.0), run("a", 1, 10, 20, 2.0), run("a", 2, 20, 30, 3.0)]


def problems(runs: list[Handled], end: int = 30) -> list[str]:
    return judge_handled(sorted(runs, key=lambda one: one.at_s), {0: end}).problems


def test_one_member_that_handles_everything_is_right() -> None:
    assert problems(STEADY) == []


def test_a_successor_may_repeat_what_was_not_committed() -> None:
    assert problems([*STEADY[:2], run("b", 0, 10, 30, 3.0)]) == []


def test_a_repeat_of_what_was_committed_is_found() -> None:
    (problem,) = problems([*STEADY[:2], run("b", 0, 5, 30, 3.0)])
    assert "everything before 10 was committed" in problem


def test_a_life_that_goes_back_by_itself_is_found() -> None:
    (problem,) = problems([*STEADY, run("a", 3, 0, 10, 4.0)])
    assert "everything before 20 was committed" in problem


def test_a_successor_that_leaves_a_gap_is_found() -> None:
    (problem,) = problems([STEADY[0], run("b", 0, 15, 30, 3.0)])
    assert "nobody had handled 10 to 14" in problem


def test_a_member_that_skips_is_found() -> None:
    (problem,) = problems([STEADY[0], STEADY[2]])
    assert "nobody had handled 10 to 19" in problem


def test_records_left_out_inside_a_run_are_found() -> None:
    (problem,) = problems([*STEADY[:2], Handled("a", 2, 0, 20, 30, 9, 3.0)])
    assert "leaves records out" in problem


def test_an_end_that_nobody_reached_is_found() -> None:
    (problem,) = problems(STEADY, 31)
    assert "1 records were never handled" in problem


def test_notes_that_a_kill_cut_off_are_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "a.handled"
    note(path, STEADY)
    with path.open("ab") as file:
        file.write(b'["a", 3, 0, 30')
    assert read_notes(tmp_path) == STEADY
