"""Tombstones: for how long they are kept, and which are pending after a change of owner."""

import pytest

from sesiones import tokens
from sesiones.store import tombstones
from sesiones.store.tombstones import Tombstones


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tombstones, "time", clock)
    return clock


@pytest.fixture
def kept(clock: Clock) -> Tombstones:
    """The tombstones of a node whose Redis answers at every moment."""
    return Tombstones(lambda _: clock.now)


def key(number: int, bucket: str = "eQ") -> str:
    return f"sesiones:{{{bucket}}}:h:{number}"


def pending(kept: Tombstones) -> set[str]:
    return {key for keys in kept.batches() for key in keys}


def test_tombstones_last_a_minute(clock: Clock, kept: Tombstones) -> None:
    kept.add([key(1)])
    clock.now += 30
    kept.add([key(2)])
    clock.now += 30
    kept.queue_replay(tokens.BUCKETS)
    assert pending(kept) == {key(1), key(2)}
    kept.acknowledge([key(1), key(2)], kept.generation)
    assert not kept.pending
    clock.now += 29
    kept.add([key(2)])  # it was back
    assert key(1) not in kept
    clock.now += 59
    kept.queue_replay(tokens.BUCKETS)
    assert pending(kept) == {key(2)}
    clock.now += 2
    kept.acknowledge([key(2)], kept.generation)
    kept.queue_replay(tokens.BUCKETS)
    assert not kept.pending
    assert not kept.any_of([key(1), key(2)])


def test_minute_of_a_tombstone_counts_back_from_the_last_answer_of_the_owner(clock: Clock) -> None:
    """The loss of the connection may be noticed late."""
    answered = {"eQ": clock.now, "ab": clock.now}
    kept = Tombstones(answered.__getitem__)
    kept.add([key(1), key(2, "ab")])
    clock.now += 3600
    answered["ab"] = clock.now
    kept.add([key(3)])
    kept.queue_replay({"eQ"})
    assert pending(kept) == {key(1), key(3)}


def test_pending_tombstones_do_not_expire(clock: Clock, kept: Tombstones) -> None:
    kept.add([key(1)])
    kept.queue_replay(tokens.BUCKETS)
    clock.now += 3600
    kept.add([key(2)])
    assert key(1) in kept
    assert kept.any_of([key(3), key(1)])
    assert pending(kept) == {key(1)}


def test_second_owner_change_during_a_replay_keeps_tombstones_pending(
    kept: Tombstones,
) -> None:
    kept.add([key(1)])
    kept.queue_replay(tokens.BUCKETS)
    before = kept.generation
    kept.queue_replay(tokens.BUCKETS)
    kept.acknowledge([key(1)], before)
    assert pending(kept) == {key(1)}
    kept.acknowledge([key(1)], kept.generation)
    assert pending(kept) == set()


def test_only_the_affected_buckets_are_replayed(kept: Tombstones) -> None:
    kept.add(key(number, "ab" if number % 3 else "cd") for number in range(300))
    kept.queue_replay({"ef"})
    assert not kept.pending
    kept.queue_replay({"ab"})
    batches = kept.batches()
    assert sorted(map(len, batches)) == [8, 64, 64, 64]
    assert all("{ab}" in key for keys in batches for key in keys)


def test_number_of_tombstones_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: Tombstones
) -> None:
    monkeypatch.setattr(tombstones, "TOMBSTONES_MAX", 10)
    for number in range(30):
        kept.add([key(number)])
        kept.queue_replay(tokens.BUCKETS)
    assert pending(kept) == {key(number) for number in range(20, 30)}
    assert key(19) not in kept
    assert caplog.messages == ["more than 10 sessions ended: the oldest are forgotten"]
