"""The broker's mind: every partition comes up by prepare, claim, lead, whatever dies between."""

import msgspec

from ray_stream.config import TopicConfig
from ray_stream.metadata import hosting
from ray_stream.metadata.commands import AssignedPartition, BrokerAssignment, PartitionServed

TOPIC = "a" * 32
NOW_MS = 10


def assigned(
    number: int, slot: str = "0", version: int = 0, *, never_led: bool = True
) -> AssignedPartition:
    return AssignedPartition(
        TOPIC, "flights", number, "dir", slot, never_led, TopicConfig(), version, 4
    )


def assignment(
    *partitions: AssignedPartition, version: int = 1, delete: tuple[tuple[str, int, str], ...] = ()
) -> hosting.Assigned:
    whole = BrokerAssignment(version, 0, ["dir"], [], list(partitions), list(delete))
    return hosting.Assigned(whole, ["dir"])


def machine() -> hosting.BrokerMachine:
    return hosting.BrokerMachine("c/host/n/", "inc", warm_slots=0)


def bring_up(broker: hosting.BrokerMachine, *partitions: AssignedPartition, epoch: int = 0) -> str:
    """Serve these on one slot; returns the host's name."""
    (start,) = broker.step(assignment(*partitions), NOW_MS)
    assert isinstance(start, hosting.StartHost)
    return serve(broker, broker.step(hosting.HostUp(start.slot, start.host), NOW_MS), epoch)


def serve(broker: hosting.BrokerMachine, effects: list[hosting.Effect], epoch: int) -> str:
    (prepare,) = effects
    assert isinstance(prepare, hosting.Prepare)
    ready = [(one.topic_id, one.partition, "") for one in prepare.partitions]
    (claim,) = broker.step(hosting.Prepared(prepare.host, ready), NOW_MS)
    assert isinstance(claim, hosting.Claim)
    (lead,) = broker.step(
        hosting.Claimed(claim.host, claim.keys, [epoch] * len(claim.keys)), NOW_MS
    )
    assert isinstance(lead, hosting.Lead)
    served = [PartitionServed(topic, number, epoch, 0) for topic, number, epoch in lead.partitions]
    (report,) = broker.step(hosting.Led(lead.host, served), NOW_MS)
    assert isinstance(report, hosting.Report)
    assert report.served == served
    return lead.host


def test_a_partition_is_prepared_then_claimed_then_led() -> None:
    bring_up(machine(), assigned(0), assigned(1))


def test_each_slot_gets_a_host_of_its_own_with_a_name_never_used_before() -> None:
    broker = machine()
    starts = broker.step(assignment(assigned(0, "0"), assigned(1, "1")), 0)
    hosts = [start.host for start in starts if isinstance(start, hosting.StartHost)]
    assert len(set(hosts)) == 2
    (again,) = broker.step(hosting.HostDown(hosts[0]), 0) or broker.step(
        hosting.Tick(), hosting.RETRY_MS
    )
    assert isinstance(again, hosting.StartHost)
    assert again.slot == "0"
    assert again.host not in hosts


def test_a_dead_host_is_replaced_at_once_and_its_partitions_get_new_epochs() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    (start,) = broker.step(hosting.HostDown(host), 5)
    assert isinstance(start, hosting.StartHost)
    effects = broker.step(hosting.HostUp(start.slot, start.host), 6)
    assert serve(broker, effects, epoch=1) == start.host


def test_answers_of_a_host_that_was_replaced_change_nothing() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    (start,) = broker.step(hosting.HostDown(host), 5)
    assert isinstance(start, hosting.StartHost)
    late = hosting.Led(host, [PartitionServed(TOPIC, 0, 7, 0)])
    assert broker.step(late, 6) == []
    assert broker.reports() == []


def test_a_damaged_partition_is_reported_and_retried_while_others_are_served() -> None:
    broker = machine()
    (start,) = broker.step(assignment(assigned(0), assigned(1)), 0)
    assert isinstance(start, hosting.StartHost)
    broker.step(hosting.HostUp(start.slot, start.host), 0)
    effects = broker.step(hosting.Prepared(start.host, [(TOPIC, 0, "damaged"), (TOPIC, 1, "")]), 0)
    report, claim = effects
    assert isinstance(report, hosting.Report)
    assert [one.offline_reason for one in report.served] == ["damaged"]
    assert isinstance(claim, hosting.Claim)
    assert claim.keys == [(TOPIC, 1)]
    broker.step(hosting.Claimed(start.host, claim.keys, [0]), 0)
    broker.step(hosting.Led(start.host, [PartitionServed(TOPIC, 1, 0, 0)]), 0)
    (prepare,) = broker.step(hosting.Tick(), hosting.RETRY_OFFLINE_MS)
    assert isinstance(prepare, hosting.Prepare)
    assert [one.partition for one in prepare.partitions] == [0]


def test_a_restarted_broker_adopts_living_hosts_without_new_epochs() -> None:
    first = machine()
    host = bring_up(first, assigned(0), epoch=3)
    second = hosting.BrokerMachine("c/host/n/", "later", warm_slots=0)
    assert second.slot_in(host) == "0"
    (report,) = second.step(
        hosting.HostUp(second.slot_in(host), host, [PartitionServed(TOPIC, 0, 3, 0)]), 0
    )
    assert isinstance(report, hosting.Report)
    assert second.step(assignment(assigned(0, never_led=False)), 0) == []


def test_new_settings_reach_the_host_and_are_reported() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    (alter,) = broker.step(assignment(assigned(0, version=1), version=2), 0)
    assert isinstance(alter, hosting.Alter)
    (report,) = broker.step(hosting.Led(host, [PartitionServed(TOPIC, 0, 0, 1)]), 0)
    assert isinstance(report, hosting.Report)
    assert broker.step(hosting.Tick(), 0) == []


def test_files_of_a_deleted_topic_are_removed_by_the_host_that_has_them_open() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    (release,) = broker.step(assignment(version=2, delete=((TOPIC, 0, "dir"),)), 0)
    assert isinstance(release, hosting.Release)
    assert release.delete == [(TOPIC, 0, "dir")]
    effects = broker.step(hosting.Released(host, release.keys, deleted=True), 0)
    assert hosting.ReportDeleted([(TOPIC, 0)]) in effects
    assert any(isinstance(effect, hosting.StopHost) for effect in effects)


def test_files_of_a_deleted_topic_that_nothing_has_open_are_removed_all_the_same() -> None:
    broker = machine()
    (start,) = broker.step(assignment(delete=((TOPIC, 0, "dir"),)), 0)
    assert isinstance(start, hosting.StartHost)
    (release,) = broker.step(hosting.HostUp(start.slot, start.host), 0)
    assert isinstance(release, hosting.Release)
    assert release.delete == [(TOPIC, 0, "dir")]


def test_a_partition_the_controller_calls_stale_is_claimed_again() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    (claim,) = broker.step(hosting.Stale(host, [(TOPIC, 0)]), 0)
    assert isinstance(claim, hosting.Claim)


def test_a_report_that_was_not_heard_is_made_again() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    assert broker.step(hosting.Unreported(host), NOW_MS) == []
    (report,) = broker.step(hosting.Tick(), NOW_MS + hosting.RETRY_MS)
    assert isinstance(report, hosting.Report)
    assert [one.partition for one in report.served] == [0]
    assert broker.step(hosting.Tick(), NOW_MS + 2 * hosting.RETRY_MS) == []


def test_a_log_that_went_offline_is_never_called_served_again_though_its_report_was_lost() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0), assigned(1))
    failed = PartitionServed(TOPIC, 0, 0, 0, "a sync failed", sync_failed=True)
    living = PartitionServed(TOPIC, 1, 0, 0)
    (report,) = broker.step(hosting.Described(host, [failed, living]), NOW_MS)
    assert report == hosting.Report(host, [failed, living])
    broker.step(hosting.Unreported(host), NOW_MS)
    (again,) = broker.step(hosting.Tick(), NOW_MS + hosting.RETRY_MS)
    assert again == hosting.Report(host, [living])
    assert broker.reports() == [again], "a new controller is told the same"
    (prepare,) = broker.step(hosting.Tick(), NOW_MS + hosting.RETRY_OFFLINE_MS)
    assert isinstance(prepare, hosting.Prepare), "it comes up, or its failure is told again"


def test_a_partition_whose_sync_failed_is_not_opened_before_its_repair() -> None:
    broker = machine()
    offline = msgspec.structs.replace(assigned(0), offline_reason="a sync failed")
    assert broker.step(assignment(offline), 0) == []


def test_thousands_of_partitions_are_opened_in_portions() -> None:
    broker = machine()
    many = [assigned(number) for number in range(hosting.PREPARE_MAX + 1)]
    (start,) = broker.step(assignment(*many), 0)
    assert isinstance(start, hosting.StartHost)
    (prepare,) = broker.step(hosting.HostUp(start.slot, start.host), 0)
    assert isinstance(prepare, hosting.Prepare)
    assert len(prepare.partitions) == hosting.PREPARE_MAX


def test_a_directory_counts_as_in_use_until_its_last_partition_is_released() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    (release,) = broker.step(assignment(version=2), 0)
    assert isinstance(release, hosting.Release)
    assert broker.serves("dir")
    broker.step(hosting.Released(host, release.keys, deleted=False), 0)
    assert not broker.serves("dir")


def test_files_that_cannot_be_removed_do_not_keep_a_slot_from_its_partitions() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    doomed = ((TOPIC, 9, "dir"),)
    now_ms = NOW_MS
    effects = broker.step(assignment(assigned(0), assigned(1), version=2, delete=doomed), now_ms)
    for _ in range(10):
        if any(isinstance(effect, hosting.Prepare) for effect in effects):
            return
        now_ms += 500
        effects = [*broker.step(hosting.Failed(host), now_ms)]
        now_ms += 500
        effects += broker.step(hosting.Tick(), now_ms)
    raise AssertionError("it is asked to remove files, and never to prepare a partition")


def test_what_could_not_be_removed_is_asked_for_again() -> None:
    broker = machine()
    host = bring_up(broker, assigned(0))
    doomed = ((TOPIC, 8, "dir"), (TOPIC, 9, "dir"))
    effects = broker.step(assignment(assigned(0), version=2, delete=doomed), NOW_MS)
    assert [type(effect) for effect in effects] == [hosting.Release]
    effects = broker.step(hosting.Released(host, [(TOPIC, 8)], deleted=True), NOW_MS)
    assert effects == [hosting.ReportDeleted([(TOPIC, 8)])]
    assert broker.step(hosting.Tick(), NOW_MS + 1) == []
    effects = broker.step(hosting.Tick(), NOW_MS + 60_000)
    assert effects == [hosting.Release(host, [(TOPIC, 9)], [(TOPIC, 9, "dir")])]
