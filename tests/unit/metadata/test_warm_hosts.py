"""The broker's mind: a node's shared hosts are there before anything is placed on them."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ray_stream.metadata import hosting
from ray_stream.metadata.commands import PartitionServed
from tests.unit.metadata.test_hosting import TOPIC, assigned, assignment, serve

SLOTS = 2
LATER_MS = 10 * hosting.WARM_PAUSE_MS_MAX


def machine(incarnation: str = "inc") -> hosting.BrokerMachine:
    return hosting.BrokerMachine("c/host/n/", incarnation, warm_slots=SLOTS)


def started(effects: list[hosting.Effect]) -> hosting.StartHost:
    (start,) = effects
    assert isinstance(start, hosting.StartHost)
    return start


def warmed(broker: hosting.BrokerMachine, now_ms: int = 0) -> list[str]:
    """Bring up every warm host; returns their names."""
    start = started(broker.step(assignment(), now_ms))
    effects: list[hosting.Effect] = [start]
    hosts = []
    while effects:
        start = started(effects)
        hosts.append(start.host)
        effects = broker.step(hosting.HostUp(start.slot, start.host), now_ms)
    return hosts


def test_each_shared_slot_gets_a_host_before_anything_is_placed_one_after_the_other() -> None:
    broker = machine()
    first = started(broker.step(assignment(), 0))
    assert broker.step(hosting.Tick(), 100) == []
    second = started(broker.step(hosting.HostUp(first.slot, first.host), 200))
    assert (first.slot, second.slot) == ("0", "1")
    assert broker.step(hosting.HostUp(second.slot, second.host), 400) == []
    assert broker.hosts() == [first.host, second.host]


def test_nothing_is_started_before_it_is_known_what_lives_and_what_is_assigned() -> None:
    broker = machine()
    assert broker.step(hosting.Tick(), 0) == []
    assert broker.step(hosting.HostUp("1", "c/host/n/1.old.7"), 0) == []


def test_the_first_partition_comes_up_on_a_warm_host() -> None:
    broker = machine()
    first, _ = warmed(broker)
    assert serve(broker, broker.step(assignment(assigned(0, "0"), version=2), 0), 0) == first


def test_a_partition_does_not_wait_for_warm_hosts_of_other_slots() -> None:
    broker = machine()
    warm = started(broker.step(assignment(), 0))
    wanted = started(broker.step(assignment(assigned(0, "1"), version=2), 0))
    assert (warm.slot, wanted.slot) == ("0", "1")


def test_no_warm_host_is_started_while_partitions_come_up() -> None:
    broker = machine()
    start = started(broker.step(assignment(assigned(0, "1")), 0))
    effects = broker.step(hosting.HostUp(start.slot, start.host), 0)
    (prepare,) = effects
    assert isinstance(prepare, hosting.Prepare)
    (claim,) = broker.step(hosting.Prepared(start.host, [(TOPIC, 0, "")]), 0)
    assert isinstance(claim, hosting.Claim)
    (lead,) = broker.step(hosting.Claimed(start.host, claim.keys, [0]), 0)
    assert isinstance(lead, hosting.Lead)
    report, warm = broker.step(hosting.Led(start.host, [PartitionServed(TOPIC, 0, 0, 0)]), 0)
    assert isinstance(report, hosting.Report)
    assert started([warm]).slot == "0"


def test_an_idle_host_is_not_stopped_when_its_last_partition_is_gone() -> None:
    broker = machine()
    hosts = warmed(broker)
    host = serve(broker, broker.step(assignment(assigned(0), version=2), 0), 0)
    (release,) = broker.step(assignment(version=3, delete=((TOPIC, 0, "dir"),)), 0)
    assert isinstance(release, hosting.Release)
    effects = broker.step(hosting.Released(host, release.keys, deleted=True), 0)
    assert effects == [hosting.ReportDeleted([(TOPIC, 0)])]
    assert broker.step(assignment(version=4), 0) == []
    assert broker.hosts() == hosts


def test_a_host_beyond_the_shared_ones_is_stopped_when_it_is_idle() -> None:
    broker = machine()
    warmed(broker)
    for slot in ("d-x-0", "groups", "2"):
        start = started(broker.step(assignment(assigned(0, slot), version=2), 0))
        host = serve(broker, broker.step(hosting.HostUp(slot, start.host), 0), 0)
        (release,) = broker.step(assignment(version=3), 0)
        assert isinstance(release, hosting.Release)
        effects = broker.step(hosting.Released(host, release.keys, deleted=False), 0)
        assert effects == [hosting.StopHost(host)]


def test_a_killed_idle_host_is_replaced() -> None:
    broker = machine()
    first, second = warmed(broker)
    assert broker.step(hosting.HostDown(first), 1_000) == []
    again = started(broker.step(hosting.Tick(), 1_000 + hosting.RETRY_MS))
    assert again.slot == "0"
    assert again.host not in (first, second)


def test_a_host_that_does_not_start_is_tried_ever_less_often_and_keeps_no_other_from_it() -> None:
    broker = machine()
    failing = started(broker.step(assignment(), 0))
    other = started(broker.step(hosting.HostDown(failing.host), 0))
    assert other.slot == "1", "the other one is not kept waiting"
    broker.step(hosting.HostUp(other.slot, other.host), 0)
    starts = []
    for now_ms in range(0, LATER_MS, 100):
        for effect in broker.step(hosting.Tick(), now_ms):
            start = started([effect])
            assert start.slot == "0"
            starts.append(now_ms)
            broker.step(hosting.HostDown(start.host), now_ms)
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert starts[0] == hosting.RETRY_MS
    assert pauses == sorted(pauses)
    assert pauses[-1] == hosting.WARM_PAUSE_MS_MAX


def test_one_that_comes_up_and_dies_at_once_is_started_ever_less_often_too() -> None:
    broker = machine()
    warmed(broker)
    starts = 0
    broker.step(hosting.HostDown(broker.hosts()[0]), 0)
    for now_ms in range(0, LATER_MS, 100):
        for effect in broker.step(hosting.Tick(), now_ms):
            start = started([effect])
            starts += 1
            broker.step(hosting.HostUp(start.slot, start.host), now_ms)
            broker.step(hosting.HostDown(start.host), now_ms + 50)
    assert starts < 20


def test_what_a_partition_needs_is_started_at_once_though_its_idle_host_kept_dying() -> None:
    broker = machine()
    failing = started(broker.step(assignment(), 0))
    broker.step(hosting.HostDown(failing.host), 0)
    now_ms = LATER_MS
    for _ in range(10):
        for effect in broker.step(hosting.Tick(), now_ms):
            broker.step(hosting.HostDown(started([effect]).host), now_ms)
        now_ms += hosting.RETRY_MS
    starts = broker.step(assignment(assigned(0, "0"), version=2), now_ms)
    assert "0" in [start.slot for start in starts if isinstance(start, hosting.StartHost)]


def test_a_host_that_lived_long_is_replaced_as_quickly_as_the_first_time() -> None:
    broker = machine()
    warmed(broker)
    now_ms = 0
    for _ in range(20):
        now_ms += hosting.WARM_PAUSE_MS_MAX
        broker.step(hosting.HostDown(broker.hosts()[0]), now_ms)
        now_ms += hosting.RETRY_MS
        start = started(broker.step(hosting.Tick(), now_ms))
        broker.step(hosting.HostUp(start.slot, start.host), now_ms)


def test_a_new_broker_adopts_living_idle_hosts_and_starts_only_what_is_missing() -> None:
    first, second = warmed(machine())
    both = machine("later")
    for host in (first, second):
        assert both.step(hosting.HostUp(both.slot_in(host), host), 0) == []
    assert both.step(assignment(), 0) == []
    assert both.hosts() == [first, second]
    one = machine("latest")
    one.step(hosting.HostUp(one.slot_in(second), second), 0)
    missing = started(one.step(assignment(), 0))
    assert missing.slot == "0"


def test_two_living_hosts_of_one_slot_are_not_both_kept() -> None:
    first, _ = warmed(machine())
    broker = machine("later")
    broker.step(hosting.HostUp("0", first), 0)
    assert broker.step(hosting.HostUp("0", "c/host/n/0.else.1"), 0) == [
        hosting.StopHost("c/host/n/0.else.1")
    ]


def test_no_warm_host_is_added_while_another_slot_holds_its_place() -> None:
    """A node that had more CPUs once: what it served is still in the hosts of then."""
    broker = machine()
    broker.step(hosting.HostUp("5", "c/host/n/5.old.1", [PartitionServed(TOPIC, 0, 0, 0)]), 0)
    broker.step(hosting.HostUp("6", "c/host/n/6.old.1", [PartitionServed(TOPIC, 1, 0, 0)]), 0)
    effects = broker.step(assignment(), 0)
    assert [type(effect) for effect in effects] == [hosting.Release, hosting.Release]
    for host in broker.hosts():
        assert broker.step(hosting.Failed(host), 0) == [], "it is asked again a little later"
    assert len(broker.hosts()) == SLOTS


@given(st.data())
def test_there_are_never_more_shared_hosts_than_slots_whatever_happens(data: st.DataObject) -> None:
    broker = machine()
    now_ms, version = 0, 0
    starting: dict[str, str] = {}
    living: dict[str, None] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        now_ms += data.draw(st.sampled_from([0, 100, 1_000, 100_000]))
        choice = data.draw(st.sampled_from(["assign", "up", "down", "tick"]))
        event: hosting.Event = hosting.Tick()
        if choice == "assign":
            version += 1
            slots = data.draw(st.lists(st.sampled_from(["0", "1", "groups", "d-x-0"]), max_size=4))
            event = assignment(
                *(assigned(number, slot) for number, slot in enumerate(slots)), version=version
            )
        elif choice == "up" and starting:
            host = data.draw(st.sampled_from(sorted(starting)))
            living[host] = None
            event = hosting.HostUp(starting.pop(host), host)
        elif choice == "down" and (starting or living):
            host = data.draw(st.sampled_from(sorted({**living, **starting})))
            starting.pop(host, None)
            living.pop(host, None)
            event = hosting.HostDown(host)
        for effect in broker.step(event, now_ms):
            if isinstance(effect, hosting.StartHost):
                starting[effect.host] = effect.slot
            elif isinstance(effect, hosting.StopHost):
                living.pop(effect.host)
        slots_of = [broker.slot_in(host) for host in [*starting, *living]]
        assert sum(slot.isdecimal() for slot in slots_of) <= SLOTS
        assert len(set(slots_of)) == len(slots_of), "two hosts of one slot"
