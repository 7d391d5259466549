"""The order in which a run sees its data: seeded, resumable, and free of who draws when.

In epoch e a stream walks a permutation that is a function of (seed, name, e) alone. Its whole state
is the number of micro-batches it has given; the last partial batch of an epoch is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._pytree import tree_leaves

from dovetail_jobs.errors import UserError
from dovetail_jobs.workload import Draw, Feed


class Stream:
    """The micro-batches of one feed, without end. `accumulate` of them make an optimizer step.

    Raises UserError when the data is smaller than one batch or the batch cannot be split.
    """

    def __init__(self, name: str, feed: Feed, *, seed: int, accumulate: int = 1) -> None:
        if feed.batch_size % accumulate:
            raise UserError(
                f"stream {name}: a batch of {feed.batch_size} samples does not split into "
                f"{accumulate} equal parts; change train.accumulate"
            )
        if len(feed.source) < feed.batch_size:
            raise UserError(
                f"stream {name}: {len(feed.source)} samples are fewer than one batch of "
                f"{feed.batch_size}; lower the batch size to {len(feed.source)} or less"
            )
        self.steps_per_epoch = len(feed.source) // feed.batch_size
        self._feed = feed
        # Words of 32 bits each: numpy joins them, and words of another width could coincide.
        self._words = (seed, zlib.crc32(name.encode()))
        self._micro_batch = feed.batch_size // accumulate
        self._per_epoch = self.steps_per_epoch * accumulate
        self._given = 0
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._ahead: Future[Any] | None = None
        self._thread = (
            ThreadPoolExecutor(1, thread_name_prefix=f"stream-{name}") if feed.prefetch else None
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next micro-batch; an error of the source arrives here."""
        if self._thread is None:
            batch = self._feed.source.batch(self._draws(self._given))
        else:
            ahead = self._ahead or self._prepare(self._given)
            batch = ahead.result()
            self._ahead = self._prepare(self._given + 1)
        self._given += 1
        return batch

    def state(self) -> dict[str, int]:
        return {"given": self._given}

    def load_state(self, state: Mapping[str, int]) -> None:
        self._drop_ahead()
        self._given = state["given"]

    def ahead_bytes(self) -> int:
        """Of the micro-batch that is prepared ahead, once it is there; 0 where none is."""
        if self._ahead is None or self._ahead.cancelled():
            return 0
        return 0 if self._ahead.exception() else _held_bytes(self._ahead.result())

    def close(self) -> None:
        """End the thread; what it prepares is dropped."""
        self._drop_ahead()
        if self._thread is not None:
            self._thread.shutdown()

    def _prepare(self, number: int) -> Future[Any]:
        assert self._thread is not None
        return self._thread.submit(self._feed.source.batch, self._draws(number))

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None

    def _draws(self, number: int) -> list[Draw]:
        """The draws of micro-batch `number`, counted from the beginning of the run."""
        epoch, place = divmod(number, self._per_epoch)
        if self._order[0] != epoch:
            generator = np.random.default_rng((*self._words, epoch))
            self._order = (epoch, generator.permutation(len(self._feed.source)))
        start = place * self._micro_batch
        indices = self._order[1][start : start + self._micro_batch]
        stream_seed = self._words[0] << 32 | self._words[1]
        return [Draw(index=int(i), epoch=epoch, stream_seed=stream_seed) for i in indices]


def _held_bytes(batch: Any) -> int:
    """Of a batch's tensors and arrays, each once."""
    leaves = {id(leaf): leaf for leaf in tree_leaves(batch)}.values()
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor | np.ndarray))
