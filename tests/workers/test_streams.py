"""Every sample once per epoch, in an order that depends on seed, name and epoch only."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dovetail_jobs.errors import UserError
from dovetail_jobs.workload import Draw, Feed
from dovetail_workers.streams import Stream


class Numbers:
    """Samples that are their draws."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return self.count

    def batch(self, draws: Sequence[Draw]) -> list[Draw]:
        self.threads.add(threading.current_thread().name)
        return list(draws)


def stream(count: int, batch_size: int, *, accumulate: int = 1, **given: object) -> Stream:
    feed = Feed(source=Numbers(count), batch_size=batch_size, prefetch=bool(given.get("prefetch")))
    seed = given.get("seed", 0)
    assert isinstance(seed, int)
    return Stream(str(given.get("name", "train")), feed, seed=seed, accumulate=accumulate)


sizes = st.integers(1, 5).flatmap(
    lambda accumulate: st.integers(1, 6).flatmap(
        lambda micro: st.tuples(
            st.just(accumulate),
            st.just(accumulate * micro),
            st.integers(accumulate * micro, 4 * accumulate * micro),
        )
    )
)


@given(sizes=sizes, seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 3))
def test_an_epoch_draws_no_sample_twice_and_leaves_less_than_a_batch(
    sizes: tuple[int, int, int], seed: int, epochs: int
) -> None:
    accumulate, batch_size, count = sizes
    drawn = stream(count, batch_size, accumulate=accumulate, seed=seed)
    assert count - batch_size < drawn.steps_per_epoch * batch_size <= count
    for epoch in range(epochs):
        draws = [draw for _ in range(drawn.steps_per_epoch * accumulate) for draw in next(drawn)]
        indices = {draw.index for draw in draws}
        assert len(draws) == len(indices) == drawn.steps_per_epoch * batch_size
        assert indices <= set(range(count))
        assert {draw.epoch for draw in draws} == {epoch}


@given(sizes=sizes, given_before=st.integers(0, 30), prefetch=st.booleans())
def test_a_stream_resumes_anywhere_as_if_it_had_never_stopped(
    sizes: tuple[int, int, int], given_before: int, prefetch: bool
) -> None:
    accumulate, batch_size, count = sizes
    unbroken = stream(count, batch_size, accumulate=accumulate)
    resumed = stream(count, batch_size, accumulate=accumulate, prefetch=prefetch)
    next(resumed)
    for _ in range(given_before):
        next(unbroken)
    resumed.load_state(unbroken.state())
    assert [next(resumed) for _ in range(7)] == [next(unbroken) for _ in range(7)]
    assert resumed.state() == unbroken.state()
    resumed.close()


def test_accumulation_splits_the_same_batch() -> None:
    whole, parts = stream(40, 8), stream(40, 8, accumulate=4)
    for _ in range(12):
        assert next(whole) == [draw for _ in range(4) for draw in next(parts)]


def test_orders_differ_between_epochs_seeds_and_names() -> None:
    def epoch(drawn: Stream) -> tuple[int, ...]:
        return tuple(draw.index for _ in range(4) for draw in next(drawn))

    first = stream(32, 8)
    orders = [epoch(first), epoch(first), epoch(stream(32, 8, seed=1))]
    orders.append(epoch(stream(32, 8, name="unlabelled")))
    assert len(set(orders)) == 4


def test_every_draw_has_a_seed_of_its_own() -> None:
    streams = [stream(50, 50), stream(50, 50, seed=1), stream(50, 50, name="other")]
    seeds = [draw.seed for drawn in streams for _ in range(3) for draw in next(drawn)]
    assert len(set(seeds)) == len(seeds) == 450
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_prefetching_draws_in_a_thread_that_ends_with_the_stream() -> None:
    source = Numbers(40)
    ahead = Stream("train", Feed(source=source, batch_size=8, prefetch=True), seed=0)
    plain = stream(40, 8)
    assert [next(ahead) for _ in range(11)] == [next(plain) for _ in range(11)]
    ahead.close()
    assert source.threads == {"stream-train_0"}
    assert not any(thread.name == "stream-train_0" for thread in threading.enumerate())


def test_an_error_while_prefetching_arrives_with_its_batch() -> None:
    class Broken(Numbers):
        def batch(self, draws: Sequence[Draw]) -> list[Draw]:
            if any(draw.index == 0 for draw in draws):
                raise UserError("00000.jpg: cannot be read")
            return super().batch(draws)

    drawn = Stream("train", Feed(source=Broken(16), batch_size=2, prefetch=True), seed=0)
    with pytest.raises(UserError, match=r"00000\.jpg"):
        list(itertools.islice(drawn, 8))
    drawn.close()


def test_data_smaller_than_a_batch_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match="stream train: 7 samples are fewer than one batch of 8"):
        stream(7, 8)
    with pytest.raises(UserError, match="8 samples does not split into 3 equal parts"):
        stream(70, 8, accumulate=3)


class Blocks:
    """Batches with a tensor, the same once more, and an array."""

    def __len__(self) -> int:
        return 64

    def batch(self, draws: Sequence[Draw]) -> dict[str, object]:
        samples = torch.zeros(len(draws), 10)
        return {"x": samples, "again": (samples,), "y": np.zeros(len(draws), np.int64), "n": 3}


@pytest.mark.parametrize(("prefetch", "held_bytes"), [(False, 0), (True, 4 * (40 + 8))])
def test_a_stream_holds_one_micro_batch_ahead_if_it_prefetches(
    prefetch: bool, held_bytes: int
) -> None:
    drawn = Stream(
        "a", Feed(source=Blocks(), batch_size=8, prefetch=prefetch), seed=0, accumulate=2
    )
    assert drawn.ahead_bytes() == 0
    next(drawn)
    assert drawn.ahead_bytes() == held_bytes
    drawn.close()
    assert drawn.ahead_bytes() == 0


def test_a_batch_that_could_not_be_prepared_holds_nothing_and_is_told_in_its_turn() -> None:
    class Breaking(Blocks):
        def batch(self, draws: Sequence[Draw]) -> dict[str, object]:
            if any(draw.epoch for draw in draws):
                raise OSError("the disk is gone")
            return super().batch(draws)

    drawn = Stream("a", Feed(source=Breaking(), batch_size=64, prefetch=True), seed=0)
    next(drawn)
    assert drawn.ahead_bytes() == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(drawn)
    drawn.close()
