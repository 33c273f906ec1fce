"""The producer's machine, one situation at a time, in virtual time."""

import itertools

import pytest

from ray_stream.client import producer_core
from ray_stream.client.inquiries_core import REFRESH_MS
from ray_stream.client.lane_core import EPOCH_MAX, IDLE_MS
from ray_stream.client.producer_events import (
    Delivered,
    MetadataAnswered,
    ProduceAnswered,
    ProducerIdAnswered,
    RequestMetadata,
    RequestProducerId,
    TopicWanted,
)
from ray_stream.config import ProducerConfig
from ray_stream.errors import (
    ClosedError,
    InvalidProducerEpochError,
    InvalidRecordError,
    LeaderNotAvailableError,
    NotLeaderOrFollowerError,
    OutcomeUnknownError,
    OutOfOrderSequenceError,
    RecordTooLargeError,
    StorageFullError,
    StorageOfflineError,
    TimeoutExpiredError,
    UnknownProducerIdError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
    VersionMismatchError,
)
from ray_stream.metadata.commands import ProducerIdGiven
from ray_stream.records.header import decode_header
from ray_stream.rpc.messages import MetadataResponse, ProduceResponse, ProduceResult
from ray_stream.types import SEQUENCE_MAX
from tests.unit.client.produce_world import ProduceWorld

PATIENT = ProducerConfig(delivery_timeout_ms=600_000, request_timeout_ms=1_000)
HASTY = ProducerConfig(delivery_timeout_ms=3_000, request_timeout_ms=1_000)


def world(*, partitions: int = 1, config: ProducerConfig = PATIENT) -> ProduceWorld:
    made = ProduceWorld(partitions=partitions, config=config)
    made.begin()
    return made


def sent_bytes(made: ProduceWorld) -> list[bytes]:
    return [bytes(raw) for send in made.sends for raw in send.request.batches]


# --- the plain way -------------------------------------------------------------------------------


def test_a_batch_is_delivered_to_its_offset() -> None:
    made = world()
    first, second = made.send(0, b"a", b"b"), made.send(0, b"c")
    made.settle()
    assert made.log() == [b"a", b"b", b"c"]
    assert (made.offset(first), made.offset(second)) == (0, 2)
    outcome = made.outcome(first)
    assert isinstance(outcome, Delivered)
    assert outcome.durability == "fsync"


def test_numbers_count_records_and_are_each_partitions_own() -> None:
    made = world(partitions=2)
    for _ in range(3):
        made.send(0, b"a", b"b")
        made.send(1, b"c")
    made.settle()
    assert made.numbers(0) == [(1, 0, 0), (1, 0, 2), (1, 0, 4)]
    assert made.numbers(1) == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]


def test_numbers_wrap_as_in_kafka() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    (lane,) = made.core._lanes.values()
    lane._next_sequence = SEQUENCE_MAX - 1
    leader = made.leaders[0]
    last = leader.headers[-1]._replace(base_sequence=SEQUENCE_MAX - 2, base_offset=0)
    leader.forget()
    leader.producers.replay(last, expiry_ms=10**9)
    made.send(0, b"b", b"c", b"d")
    made.send(0, b"e")
    made.settle()
    assert [number for _, _, number in made.numbers()] == [SEQUENCE_MAX - 1, 1]
    assert made.log() == [b"b", b"c", b"d", b"e"]


def test_no_more_than_the_window_is_under_way_in_a_partition() -> None:
    made = world(config=ProducerConfig(max_in_flight=2))
    made.silent = {"host-a"}
    for number in range(5):
        made.send(0, b"%d" % number)
    made.run(100)
    assert len(made.sends) == 2
    assert made.core.backlog("t")
    made.silent = set()
    made.settle()
    assert made.log() == [b"0", b"1", b"2", b"3", b"4"]
    assert not made.core.backlog("t")


def test_one_request_takes_batches_of_several_partitions_of_one_host() -> None:
    made = world(partitions=3)
    made.move(2, "host-b")
    made.step(TopicWanted("t"))
    made.run(100)
    made.send(0, b"first, for the producer id")
    made.settle()
    made.sends.clear()
    made.send_all([(0, [b"a"]), (1, [b"b"]), (2, [b"c"]), (0, [b"d"])])
    assert [
        (send.host, [entry.partition for entry in send.request.partitions]) for send in made.sends
    ] == [("host-a", [0, 1]), ("host-b", [2]), ("host-a", [0])]
    made.settle()
    assert made.log(0)[1:] == [b"a", b"d"]


def test_a_request_does_not_grow_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(partitions=3)
    made.send(0, b"first, for the producer id")
    made.settle()
    made.sends.clear()
    monkeypatch.setattr(producer_core, "REQUEST_BYTES_MAX", 1_000)
    made.send_all([(0, [b"a"]), (1, [bytes(5_000)]), (2, [b"c"])])
    assert [len(send.request.partitions) for send in made.sends] == [1, 1, 1]
    made.settle()


def test_nothing_is_due_when_nothing_is_open() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    made.run(700_000)  # the timer of a batch that was delivered long before
    assert made.core.next_deadline_ms is None


# --- retries -------------------------------------------------------------------------------------


def test_a_lost_answer_is_asked_for_again_and_the_duplicate_is_a_success() -> None:
    made = world()
    made.send(0, b"before")
    made.settle()
    made.loss, made.told = 1.0, 1.0
    request = len(made.sends)
    batch = made.send(0, b"a")
    send = made.sends[request]
    made.leaders[0].append(bytes(send.request.batches[0]), 0, copied=False)  # it did arrive
    made.run(10)
    made.loss = 0.0
    made.settle()
    assert made.offset(batch) == 1
    assert made.log() == [b"before", b"a"]


def test_a_retry_is_the_same_byte_for_byte() -> None:
    made = world()
    made.leaders[0].refusals = [StorageFullError("full")] * 3
    made.send(0, b"a")
    made.settle()
    assert len(sent_bytes(made)) == 4
    assert len(set(sent_bytes(made))) == 1
    assert made.log() == [b"a"]


def test_retries_pause_longer_and_longer_up_to_the_limit() -> None:
    made = world()
    made.delay_max_ms = 0
    times = []
    made.leaders[0].refusals = [StorageFullError("full")] * 8
    made.send(0, b"a")
    while len(made.sends) < 9:
        before = len(made.sends)
        made.run(until=lambda before=before: len(made.sends) > before)  # type: ignore[misc]
        times.append(made.time_ms)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, expected in zip(pauses, [100, 200, 400, 800, 1000, 1000, 1000, 1000], strict=True):
        assert 0.8 * expected <= pause <= 1.2 * expected


def test_a_host_that_never_answers_is_asked_again_after_the_request_timeout() -> None:
    made = world()
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    made.run(1_050)
    made.silent = set()
    made.settle()
    assert made.offset(batch) == 0
    assert isinstance(made.inquiries[-1], RequestMetadata), "it may be served elsewhere by now"


def test_a_moved_partition_is_followed_at_once() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    made.run(1_000)
    made.move(0, "host-b")
    batch = made.send(0, b"b")
    started = made.time_ms
    made.settle()
    assert made.offset(batch) == 1
    assert [send.host for send in made.sends[-2:]] == ["host-a", "host-b"]
    assert made.time_ms - started < 50, "news of the new place end the pause"


def test_what_nothing_serves_is_sent_once_it_is_served() -> None:
    made = world()
    made.move(0, "")
    made.step(TopicWanted("t"))
    made.run(100)
    batch = made.send(0, b"a")
    made.run(5_000)
    assert made.sends == []
    assert len(made.inquiries) < 20, "it does not hammer the controller"
    made.move(0, "host-b")
    made.settle()
    assert made.offset(batch) == 0


def test_a_batch_that_was_overtaken_is_delivered_all_the_same() -> None:
    made = world()
    made.send(0, b"first, for the producer id")
    made.settle()
    made.delay_max_ms = 0
    made.loss, made.told = 1.0, 1.0
    first = made.send(0, b"a")
    made.loss = 0.0
    second = made.send(0, b"b")
    made.settle()
    assert (made.offset(first), made.offset(second)) == (1, 2)
    assert [epoch for _, epoch, _ in made.numbers()] == [0, 0, 0]


def test_a_refusal_of_what_overtook_is_no_verdict_even_when_it_is_answered_last() -> None:
    made = world()
    made.delay_max_ms = 0
    made.silent = {"host-a"}
    first, second = made.send_all([(0, [b"a"]), (0, [b"b"])])
    made.run(10)
    leader = made.leaders[0]
    early = leader.append(bytes(made.sends[1].request.batches[0]), 0, copied=False)
    late = leader.append(bytes(made.sends[0].request.batches[0]), 0, copied=False)
    made.silent = set()
    made.step(ProduceAnswered(made.sends[0].request_id, ProduceResponse([late])))
    made.step(ProduceAnswered(made.sends[1].request_id, ProduceResponse([early])))
    made.settle()
    assert (made.offset(first), made.offset(second)) == (0, 1)


def test_what_waits_for_a_batch_in_front_is_not_sent_in_vain() -> None:
    made = world()
    made.delay_max_ms = 0
    made.leaders[0].refusals = [StorageFullError("full")] * 3
    made.send(0, b"a")
    made.run(50)
    made.send(0, b"b")
    made.settle()
    assert len(made.sends) == 5
    assert made.log() == [b"a", b"b"]


def test_a_late_success_of_an_earlier_attempt_counts() -> None:
    made = world()
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    made.run(until=lambda: bool(made.sends))
    made.run(1_500)
    assert len(made.sends) == 2
    result = ProduceResult("id-1", 0, base_offset=0, durability="fsync")
    made.step(ProduceAnswered(made.sends[0].request_id, ProduceResponse([result])))
    assert made.offset(batch) == 0
    made.silent = set()
    made.run(5_000)
    assert len(made.sends) == 2


def test_a_late_refusal_of_an_earlier_attempt_settles_only_that_attempt() -> None:
    made = world(config=HASTY)
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    made.run(1_500)
    assert len(made.sends) == 2
    made.step(ProduceAnswered(made.sends[0].request_id, InvalidRecordError("no")))
    assert made.outcome(batch) is None
    made.silent = set()
    made.settle()
    assert made.offset(batch) == 0


def test_an_answer_that_does_not_fit_the_request_says_nothing() -> None:
    made = world()
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    made.run(50)
    for wrong in (
        ProduceResponse([]),
        ProduceResponse([ProduceResult("another", 0, base_offset=5)]),
    ):
        made.step(ProduceAnswered(made.sends[-1].request_id, wrong))
        assert made.outcome(batch) is None
        made.run(500)
    made.silent = set()
    made.settle()
    assert made.offset(batch) == 0


def test_each_partition_of_a_request_has_its_own_answer() -> None:
    made = world(partitions=2)
    made.leaders[1].refusals = [InvalidRecordError("no")]
    first, second = made.send_all([(0, [b"a"]), (1, [b"b"])])
    made.settle()
    assert made.offset(first) == 0
    assert isinstance(made.error(second), InvalidRecordError)


# --- time runs out -------------------------------------------------------------------------------


def test_what_was_never_sent_failed_for_certain_and_says_why() -> None:
    made = world(config=HASTY)
    made.move(0, "")
    made.step(TopicWanted("t"))
    made.run(100)
    batch = made.send(0, b"a")
    made.settle()
    error = made.error(batch)
    assert isinstance(error, LeaderNotAvailableError)
    assert "delivery_timeout_ms=3000" in str(error)
    assert "nothing serves t-0" in str(error)


def test_what_waited_behind_others_until_its_time_was_over_failed_for_certain() -> None:
    made = world(config=ProducerConfig(delivery_timeout_ms=3_000, max_in_flight=1))
    made.silent = {"host-a"}
    first, second = made.send_all([(0, [b"a"]), (0, [b"b"])])
    made.settle()
    assert isinstance(made.error(first), OutcomeUnknownError)
    assert isinstance(made.error(second), TimeoutExpiredError)


def test_what_was_always_refused_failed_with_that_refusal() -> None:
    made = world(config=HASTY)
    made.leaders[0].refusals = [StorageFullError("disk full")] * 1_000
    batch = made.send(0, b"a")
    made.settle()
    error = made.error(batch)
    assert isinstance(error, StorageFullError)
    assert "disk full" in str(error)


def test_what_may_have_been_written_is_called_unknown_within_the_timeout() -> None:
    made = world(config=HASTY)
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    started = made.time_ms
    made.settle()
    assert isinstance(made.error(batch), OutcomeUnknownError)
    assert made.time_ms - started <= 3_000


def test_a_refusal_after_a_lost_request_is_unknown_too() -> None:
    made = world()
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    made.run(1_050)
    made.silent = set()
    made.leaders[0].refusals = [InvalidRecordError("no")]
    made.settle()
    assert isinstance(made.error(batch), OutcomeUnknownError)


# --- holes and epochs ----------------------------------------------------------------------------


def test_after_an_unknown_outcome_the_next_epoch_starts_at_sequence_0() -> None:
    made = world(config=HASTY)
    made.send(0, b"a")
    made.settle()
    made.silent = {"host-a"}
    unknown = made.send(0, b"b")
    made.settle()
    assert isinstance(made.error(unknown), OutcomeUnknownError)
    made.silent = set()
    made.send(0, b"c")
    made.send(0, b"d")
    made.settle()
    assert made.log() == [b"a", b"c", b"d"]
    assert made.numbers() == [(1, 0, 0), (1, 1, 0), (1, 1, 1)]


def test_a_batch_of_the_old_epoch_that_arrives_late_is_refused() -> None:
    made = world(config=HASTY)
    made.send(0, b"a")
    made.settle()
    made.silent = {"host-a"}
    made.send(0, b"b")
    late = bytes(made.sends[-1].request.batches[0])
    made.settle()
    made.silent = set()
    made.send(0, b"c")
    made.settle()
    result = made.leaders[0].append(late, made.time_ms, copied=True)
    assert result.error is not None
    assert result.error.name == "InvalidProducerEpochError"


def test_what_is_under_way_behind_an_unknown_batch_is_waited_for_and_never_renumbered() -> None:
    made = world(config=HASTY)
    made.send(0, b"a")
    made.settle()
    made.silent = {"host-a"}
    lost = made.send(0, b"b")
    made.run(1_500)
    behind = made.send(0, b"c")
    made.run(until=lambda: made.outcome(lost) is not None)
    made.send(0, b"d")
    made.run(10)
    epochs = [decode_header(raw).producer_epoch for raw in sent_bytes(made)]
    assert set(epochs) == {0}, "the epoch changes only when nothing numbered is unresolved"
    made.silent = set()
    made.settle()
    assert isinstance(made.error(behind), OutcomeUnknownError)
    assert made.log() == [b"a", b"d"]
    assert made.numbers()[-1] == (1, 1, 0)


def test_an_acknowledgement_behind_a_hole_proves_that_it_was_filled() -> None:
    made = world(config=HASTY)
    made.send(0, b"a")
    made.settle()
    made.silent = {"host-a"}
    lost = made.send(0, b"b")
    arrived = bytes(made.sends[-1].request.batches[0])
    made.run(1_500)
    behind = made.send(0, b"c")
    made.run(until=lambda: made.outcome(lost) is not None)
    made.leaders[0].append(arrived, made.time_ms, copied=False)
    made.silent = set()
    made.settle()
    assert made.offset(behind) == 2
    made.send(0, b"d")
    made.settle()
    assert made.numbers()[-1] == (1, 0, 3), "the numbers go on"


def test_an_acknowledgement_in_front_of_a_hole_proves_nothing() -> None:
    made = world()
    made.delay_max_ms = 0
    made.send(0, b"a")
    made.settle()
    made.silent = {"host-a"}
    front, refused = made.send(0, b"b"), made.send(0, b"c")
    made.run(10)
    made.step(ProduceAnswered(made.sends[-1].request_id, InvalidRecordError("no")))
    made.silent = set()
    made.settle()
    assert made.offset(front) == 1
    assert isinstance(made.error(refused), InvalidRecordError)
    made.send(0, b"d")
    made.settle()
    assert made.log() == [b"a", b"b", b"d"]
    assert made.numbers()[-1] == (1, 1, 0)


def test_what_is_behind_a_refused_batch_fails_for_certain_and_the_next_goes_on() -> None:
    made = world()
    made.delay_max_ms = 0
    made.send(0, b"a")
    made.settle()
    made.leaders[0].refusals = [RecordTooLargeError("too large")]
    refused, behind = made.send_all([(0, [b"b"]), (0, [b"c"])])
    made.settle()
    assert isinstance(made.error(refused), RecordTooLargeError)
    error = made.error(behind)
    assert isinstance(error, OutOfOrderSequenceError)
    assert "too large" in str(error)
    made.send(0, b"d")
    made.settle()
    assert made.log() == [b"a", b"d"]


def test_other_partitions_keep_their_epoch() -> None:
    made = world(partitions=2)
    made.send_all([(0, [b"a"]), (1, [b"b"])])
    made.settle()
    made.leaders[0].refusals = [InvalidRecordError("no")]
    made.send_all([(0, [b"c"]), (1, [b"d"])])
    made.settle()
    made.send_all([(0, [b"e"]), (1, [b"f"])])
    made.settle()
    assert made.numbers(0) == [(1, 0, 0), (1, 1, 0)]
    assert made.numbers(1) == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]


def test_a_log_that_lost_what_it_acknowledged_fails_a_window_and_goes_on() -> None:
    made = world()
    made.send(0, b"a", b"b")
    made.settle()
    made.leaders[0].forget()
    lost = made.send(0, b"c")
    made.settle()
    assert isinstance(made.error(lost), UnknownProducerIdError)
    made.send(0, b"d")
    made.settle()
    assert made.log() == [b"d"]
    assert made.numbers() == [(1, 1, 0)]


def test_a_producer_that_was_silent_for_long_starts_a_new_epoch_by_itself() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    made.run(IDLE_MS + 1)
    made.leaders[0].producers.expire(now_ms=made.time_ms + 10**9, expiry_ms=1)
    batch = made.send(0, b"b")
    made.settle()
    assert made.offset(batch) == 1
    assert made.numbers()[-1] == (1, 1, 0)


def test_an_id_that_somebody_else_uses_is_given_up() -> None:
    made = world(partitions=2)
    made.send_all([(0, [b"a"]), (1, [b"b"])])
    made.settle()
    made.leaders[0].refusals = [InvalidProducerEpochError("a newer instance")]
    fenced = made.send(0, b"c")
    made.settle()
    assert isinstance(made.error(fenced), InvalidProducerEpochError)
    made.send_all([(0, [b"d"]), (1, [b"e"])])
    made.settle()
    assert made.numbers(0) == [(1, 0, 0), (2, 0, 0)]
    assert made.numbers(1) == [(1, 0, 0), (1, 0, 1)]


def test_after_the_last_epoch_comes_another_id() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    (lane,) = made.core._lanes.values()
    lane.epoch = EPOCH_MAX
    made.leaders[0].refusals = [InvalidRecordError("no")]
    made.send(0, b"b")
    made.settle()
    made.send(0, b"c")
    made.settle()
    assert made.numbers()[-1] == (2, 0, 0)


# --- topics that go ------------------------------------------------------------------------------


def test_records_for_a_deleted_topic_fail_after_one_look() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    made.delete()
    looks = len(made.inquiries)
    batch = made.send(0, b"b")
    started = made.time_ms
    made.settle()
    assert isinstance(made.error(batch), UnknownTopicOrPartitionError)
    assert len(made.inquiries) == looks + 1
    assert made.time_ms - started < 1_000


def test_records_for_a_topic_made_anew_are_not_written_to_the_new_one() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    made.make_anew()
    old = made.send(0, b"b")
    made.settle()
    assert isinstance(made.error(old), UnknownTopicIdError)
    new = made.send(0, b"c")
    made.settle()
    assert made.offset(new) == 0
    assert made.log() == [b"c"]


def test_a_lost_request_to_a_topic_that_is_gone_is_no_mystery() -> None:
    made = world()
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    made.run(500)
    made.delete()
    made.settle()
    assert isinstance(made.error(batch), UnknownTopicOrPartitionError)


def test_a_host_that_does_not_have_the_topic_yet_is_asked_again() -> None:
    made = world()
    made.send(0, b"a")
    made.settle()
    made.leaders[0].refusals = [UnknownTopicIdError("not yet")] * 3
    batch = made.send(0, b"b")
    made.settle()
    assert made.offset(batch) == 1


# --- acknowledgements ----------------------------------------------------------------------------


def test_with_acks_0_nobody_says_where_a_record_went() -> None:
    made = world(config=ProducerConfig(acks=0))
    batch = made.send(0, b"a")
    made.settle()
    outcome = made.outcome(batch)
    assert isinstance(outcome, Delivered)
    assert (outcome.base_offset, outcome.durability) == (-1, "none")
    assert made.sends[0].request.acks == 0
    assert made.numbers() == [(-1, -1, -1)]


def test_with_acks_0_nothing_is_sent_twice() -> None:
    made = world(config=ProducerConfig(acks=0))
    made.loss, made.told = 1.0, 1.0
    batch = made.send(0, b"a")
    made.settle()
    assert isinstance(made.error(batch), OutcomeUnknownError)
    assert len(made.sends) == 1


def test_acks_1_and_all_are_asked_for_as_such() -> None:
    for acks, number in ((1, 1), ("all", -1), (-1, -1)):
        made = world(config=ProducerConfig(acks=acks))  # type: ignore[arg-type]
        made.send(0, b"a")
        made.settle()
        assert made.sends[0].request.acks == number


def test_a_log_that_stamps_its_own_time_says_so() -> None:
    made = world()
    made.silent = {"host-a"}
    batch = made.send(0, b"a")
    made.run(50)
    result = ProduceResult("id-1", 0, base_offset=3, append_timestamp=77, log_append_time=True)
    made.step(ProduceAnswered(made.sends[-1].request_id, ProduceResponse([result])))
    outcome = made.outcome(batch)
    assert isinstance(outcome, Delivered)
    assert outcome.append_timestamp == 77


# --- the controller ------------------------------------------------------------------------------


def test_one_producer_id_serves_all_partitions() -> None:
    made = world(partitions=3)
    made.send_all([(0, [b"a"]), (1, [b"b"]), (2, [b"c"])])
    made.settle()
    assert sum(isinstance(one, RequestProducerId) for one in made.inquiries) == 1


def test_a_controller_that_is_away_delays_and_loses_nothing() -> None:
    made = world()
    made.silent = {"controller"}
    batch = made.send(0, b"a")
    made.run(5_000)
    made.silent = set()
    made.settle()
    assert made.offset(batch) == 0


def test_a_producer_id_that_is_refused_for_good_fails_the_records() -> None:
    made = world()
    made.silent = {"controller"}
    batch = made.send(0, b"a")
    made.step(ProducerIdAnswered(made.inquiries[-1].request_id, VersionMismatchError("old")))
    assert isinstance(made.error(batch), VersionMismatchError)


def test_a_topic_that_is_not_there_is_described_as_missing() -> None:
    made = ProduceWorld()
    made.exists = False
    made.step(TopicWanted("t"))
    made.run(100)
    assert [one.topics for one in made.described] == [("t",)]
    assert made.core.directory.is_missing("t")


def test_a_look_up_that_fails_for_good_says_so_and_one_that_may_succeed_goes_on() -> None:
    made = ProduceWorld()
    made.silent = {"controller"}
    made.step(TopicWanted("t"))
    made.step(MetadataAnswered(made.inquiries[-1].request_id, NotLeaderOrFollowerError("moving")))
    assert made.described == []
    made.run(500)
    error = VersionMismatchError("old")
    made.step(MetadataAnswered(made.inquiries[-1].request_id, error))
    assert made.described[-1].error is error


def test_a_question_asked_during_another_gets_an_answer_of_its_own() -> None:
    made = ProduceWorld()
    made.silent = {"controller"}
    made.step(TopicWanted("t"))
    first = made.inquiries[-1].request_id
    made.step(TopicWanted("t"))
    made.step(MetadataAnswered(first, MetadataResponse("cluster", 1, 1, [], [])))
    assert len(made.inquiries) == 2


def test_answers_that_always_come_too_late_are_taken_all_the_same() -> None:
    made = ProduceWorld(config=ProducerConfig(request_timeout_ms=100))
    made.silent = {"controller"}
    made.step(TopicWanted("t"))
    made.run(250)
    first = made.inquiries[0].request_id
    made.silent = set()
    made._metadata(lambda answer: made.step(MetadataAnswered(first, answer)))
    batch = made.send(0, b"a")
    made.silent = {"controller"}
    made.run(250)
    question = next(one for one in made.inquiries if isinstance(one, RequestProducerId))
    made.step(ProducerIdAnswered(question.request_id, ProducerIdGiven(9, 0)))
    made.settle()
    assert made.offset(batch) == 0
    assert made.numbers() == [(9, 0, 0)]


def test_topics_in_use_are_described_anew_once_in_a_while() -> None:
    made = world()
    looks = len(made.inquiries)
    for _ in range(30):
        made.send(0, b"a")
        made.run(REFRESH_MS // 10)
    assert 2 <= len(made.inquiries) - looks - 1 <= 3


# --- the end -------------------------------------------------------------------------------------


def test_what_is_abandoned_fails_and_what_was_sent_is_unknown() -> None:
    made = world(config=ProducerConfig(max_in_flight=1))
    made.silent = {"host-a"}
    sent, waiting = made.send_all([(0, [b"a"]), (0, [b"b"])])
    made.run(100)
    made.abandon()
    assert isinstance(made.error(sent), OutcomeUnknownError)
    assert isinstance(made.error(waiting), ClosedError)
    assert made.core.next_deadline_ms is None or made.core.backlog("t") is False


def test_a_replica_that_went_offline_fails_its_records_at_once() -> None:
    made = world()
    made.leaders[0].refusals = [StorageOfflineError("after a failed sync")]
    batch = made.send(0, b"a")
    made.settle()
    assert isinstance(made.error(batch), StorageOfflineError)
    assert len(made.sends) == 1
