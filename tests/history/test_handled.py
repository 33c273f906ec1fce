"""The judge of handlers finds each planted fault, and lets what is promised pass."""

from pathlib import Path

from ray_stream.testing.handled import (
    BEGUN,
    Handled,
    Verdict,
    judge_handled,
    note,
    read_notes,
    runs_of,
)


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


# --- handlers that take time ----------------------------------------------------------------------

BEGUN_STEADY = [one._replace(at_s=one.at_s - 0.5) for one in STEADY]


def verdict(runs: list[Handled], begun: list[Handled], end: int = 30) -> Verdict:
    return judge_handled(
        sorted(runs, key=lambda one: one.at_s),
        {0: end},
        sorted(begun, key=lambda one: one.at_s),
    )


def test_a_batch_that_a_kill_cut_short_is_handled_by_the_successor() -> None:
    found = verdict(
        [*STEADY[:2], run("b", 0, 20, 30, 5.0)], [*BEGUN_STEADY, run("b", 0, 20, 30, 4.0)]
    )
    assert (found.problems, found.cut_short, found.repeated) == ([], 1, 0)


def test_what_was_ready_and_not_committed_is_repeated() -> None:
    found = verdict(
        [*STEADY[:2], run("b", 0, 10, 30, 5.0)], [*BEGUN_STEADY[:2], run("b", 0, 10, 30, 4.0)]
    )
    assert (found.problems, found.cut_short, found.repeated) == ([], 0, 10)


def test_a_batch_in_hand_proves_that_the_one_before_was_committed() -> None:
    found = verdict(
        [*STEADY[:2], run("b", 0, 10, 30, 5.0)], [*BEGUN_STEADY, run("b", 0, 10, 30, 4.0)]
    )
    (problem,) = found.problems
    assert "everything before 20 was committed" in problem


def test_a_batch_that_was_cut_short_and_that_nobody_handled_is_found() -> None:
    (problem,) = verdict(STEADY[:2], BEGUN_STEADY).problems
    assert "10 records were never handled, from offset 20" in problem


def test_a_successor_that_begins_behind_a_batch_in_hand_is_found() -> None:
    found = verdict(
        [*STEADY[:2], run("b", 0, 30, 40, 5.0)], [*BEGUN_STEADY, run("b", 0, 30, 40, 4.0)], 40
    )
    (problem,) = found.problems
    assert "nobody had handled 20 to 29" in problem


def test_a_successor_that_begins_before_the_batch_in_front_is_ready_is_found() -> None:
    early = run("b", 0, 20, 30, 1.7)
    found = verdict([*STEADY[:2], early._replace(at_s=3.0)], [*BEGUN_STEADY[:2], early])
    (problem,) = found.problems
    assert "nobody had handled 10 to 19" in problem


def test_a_batch_of_several_runs_is_in_hand_as_a_whole() -> None:
    begun = [run("a", 0, 0, 10, 0.5), run("a", 0, 10, 30, 0.5)]
    assert verdict([one._replace(at_s=1.0) for one in begun], begun).problems == []


def test_two_batches_in_hand_at_once_are_found() -> None:
    both = [BEGUN_STEADY[0], BEGUN_STEADY[1]._replace(at_s=0.9)]
    found = verdict(STEADY[:2], both, 20)
    assert any("began call 1 with call 0 in hand" in one for one in found.problems)


def test_a_life_that_goes_on_without_finishing_is_found() -> None:
    found = verdict([STEADY[0], STEADY[2]], BEGUN_STEADY)
    assert any("began call 2 with call 1 in hand" in one for one in found.problems)


def test_what_was_handled_and_never_begun_is_found() -> None:
    assert any("never begun" in one for one in verdict(STEADY, BEGUN_STEADY[:2]).problems)


def test_a_batch_handled_in_part_is_not_what_was_begun() -> None:
    found = verdict([*STEADY[:2], run("a", 2, 20, 25, 3.0)], BEGUN_STEADY)
    assert any("never begun" in one for one in found.problems)


def test_notes_of_what_was_begun_are_read_apart(tmp_path: Path) -> None:
    note(tmp_path / "a.handled", STEADY[:2])
    note(tmp_path / "a.begun", BEGUN_STEADY)
    assert read_notes(tmp_path) == STEADY[:2]
    assert read_notes(tmp_path, BEGUN) == BEGUN_STEADY


def test_a_batch_is_cut_where_offsets_or_partitions_do_not_go_on() -> None:
    runs = runs_of("a", 3, [0, 0, 0, 1, 1], [7, 8, 10, 11, 12], 1.0)
    assert [(one.partition, one.first, one.next, one.records) for one in runs] == [
        (0, 7, 9, 2),
        (0, 10, 11, 1),
        (1, 11, 13, 2),
    ]
    assert runs_of("a", 3, [], [], 1.0) == []
