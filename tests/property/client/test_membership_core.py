"""Members and their coordinator, with everything going wrong between them that a network can do."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_stream.client.membership_core import Phase
from tests.unit.client.membership_world import User, World

ROUNDS = 60


def disturb(world: World, started: list[User]) -> None:
    """One thing happens."""
    what = world.rng.random()
    if what < 0.06 and len(started) < 7:
        name = f"m{len(started)}"
        instance_id = world.rng.choice(["", "", "i"])
        user = world.user(name, instance_id, max_poll_interval_ms=20_000)
        user.subscribe("t")
        started.append(user)
    elif what < 0.09 and started:
        world.rng.choice(started).is_dead = True
    elif what < 0.12 and started:
        world.rng.choice(started).leave()
    elif what < 0.16:
        world.kill() if world.is_up else world.restart()
    elif what < 0.20 and world.topics["t"] < 8:
        world.topics["t"] += 1
        world.coordinator.see(world.topics)
    elif what < 0.24 and started:
        user = world.rng.choice(started)
        user.idle_since_ms = None if user.idle_since_ms is not None else world.time_ms
    elif what < 0.28:
        world.is_led = not world.is_led
        world.version += 1


def use(world: World, started: list[User]) -> None:
    for user in started:
        reads = not user.is_dead and user.idle_since_ms is None
        if reads and world.rng.random() < 0.7:
            user.poll(world.rng.randint(0, 5), commits=world.rng.random() < 0.9)
            if world.rng.random() < 0.4:
                user.commit()


@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    repeat=st.sampled_from([0.0, 0.3]),
    delay_ms=st.sampled_from([1, 50, 2_000]),
)
@example(seed=1, loss=0.3, repeat=0.3, delay_ms=2_000)
@settings(max_examples=20)
def test_no_partition_has_two_readers_no_record_is_left_out_and_all_ends_well(
    seed: int, loss: float, repeat: float, delay_ms: int
) -> None:
    world = World(seed)
    started: list[User] = []
    world.loss, world.repeat, world.delay_max_ms = loss, repeat, delay_ms
    world.silent = world.rng.random() < 0.5
    for _ in range(ROUNDS):
        disturb(world, started)
        use(world, started)
        world.run(world.rng.choice([5, 100, 1_000]))
        world.tick()
    world.loss, world.repeat, world.delay_max_ms, world.is_led = 0.0, 0.0, 2, True
    if not world.is_up:
        world.restart()
    world.version += 1
    final = world.user("last")
    final.subscribe("t")
    started.append(final)
    for user in started:
        user.idle_since_ms = None
    for _ in range(150):
        world.run(100)
        world.tick()
        for user in started:
            if not user.is_dead:
                user.poll(1)
    members = [one for one in started if one.core.phase == Phase.IN and not one.is_dead]
    shares = [key for one in members for key in one.reads]
    assert sorted(shares) == [("t-t", number) for number in range(world.topics["t"])]
    assert sorted(world.members()) == sorted(one.name for one in members)
    sizes = [len(one.reads) for one in members]
    assert max(sizes) - min(sizes) <= 1
    for user in members:
        user.commit()
    world.run(5_000)
    stored = world.coordinator.committed("g")
    assert stored == {key: at for user in members for key, at in user.reads.items()}
