"""What is captured comes back in every generator, through a checkpoint's own format."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from dovetail_workers import random_state


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.random()),
        float(np.random.standard_normal()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_a_seed_fixes_every_generator() -> None:
    random_state.seed_everything(7)
    first = draws()
    random_state.seed_everything(7)
    assert draws() == first
    random_state.seed_everything(8)
    assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_a_restored_state_continues_even_between_the_halves_of_a_gaussian_pair() -> None:
    random_state.seed_everything(3)
    draws()
    file = io.BytesIO()
    torch.save(random_state.capture(), file)
    expected = [draws() for _ in range(3)]
    file.seek(0)
    random_state.restore(torch.load(file, weights_only=True))
    assert [draws() for _ in range(3)] == expected


def test_draws_inside_leave_no_trace_outside() -> None:
    random_state.seed_everything(5)
    expected = draws()
    random_state.seed_everything(5)
    with random_state.undisturbed():
        assert draws() == expected
        draws()
    assert draws() == expected
