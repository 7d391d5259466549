"""What autograd saved comes back bit for bit; a change of it is refused where autograd would."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers.ballast import ballast
from helpers.random_programs import Operation, operations, perform
from tensile import Session
from tensile.contents import Content, Contents, Slot
from tensile.lower_tier import LowerTier
from tensile.stats import Counters
from tensile.swap_file import SwapFile

SIDE = 6


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Under a budget that nothing fits, so that everything leaves that may."""
    model = nn.Linear(SIDE, SIDE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder = tmp_path_factory.mktemp("lower")
    with Session(model, optimizer, 1, folder=folder, smallest_bytes=0) as session, ballast():
        yield session


def outcome(work: Callable[[], object], around: AbstractContextManager[None]) -> object:
    """What it gives, or the beginning of the error that it raises."""
    try:
        with around:
            return work()
    except RuntimeError as error:
        return str(error).split(":")[0]


def same(left: object, right: object) -> bool:
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left.nan_to_num(), right.nan_to_num())
    return left == right


def gradients(program: list[Operation], forget: bool) -> tuple[Tensor | None, ...]:
    torch.manual_seed(1)
    leaves = [torch.randn(SIDE, SIDE, requires_grad=True) for _ in range(2)]
    values = [leaf * 1.0 for leaf in leaves]
    values.append(values[0])  # one thing under two names
    for operation in program:
        perform(operation, values)
        if forget and len(values) > 4:
            del values[3]  # from here on only autograd may have it
    loss = sum((value.sum() for value in values), start=torch.zeros(()))
    del values
    loss.backward()  # type: ignore[no-untyped-call]
    return (*(leaf.grad for leaf in leaves), loss.detach())


@settings(max_examples=100, deadline=None)
@given(program=st.lists(operations, min_size=1, max_size=12), forget=st.booleans())
def test_random_programs_give_the_same_gradients_or_the_same_refusal(
    session: Session, program: list[Operation], forget: bool
) -> None:
    plain = outcome(lambda: gradients(program, forget), nullcontext())
    managed = outcome(lambda: gradients(program, forget), session.step())
    assert same(plain, managed), (plain, managed)


def test_saved_tensors_really_leave_and_come_back(session: Session) -> None:
    before = session.stats()
    x = torch.randn(64, 64, requires_grad=True)
    with session.step():
        x.exp().sin().exp().sum().backward()  # type: ignore[no-untyped-call]
    after = session.stats()
    assert after.swapped_out_bytes - before.swapped_out_bytes >= 64 * 64 * 4
    assert after.swapped_in_bytes > before.swapped_in_bytes


def test_memory_that_is_not_torchs_own_stays(session: Session) -> None:
    def work() -> tuple[Tensor | None, ...]:
        x = torch.ones(64, 64, requires_grad=True)
        lent = torch.from_numpy(np.arange(64 * 64, dtype=np.float32).reshape(64, 64))
        loss = (x * lent).exp2().clamp(max=2).sum()
        del lent  # from here on only autograd has it
        loss.backward()  # type: ignore[no-untyped-call]
        return (x.grad,)

    assert same(outcome(work, nullcontext()), outcome(work, session.step()))


def test_what_is_computed_again_keeps_the_signs_of_its_views() -> None:
    made = torch.randn(6, dtype=torch.complex64)
    conjugate, negative = made.conj(), made.conj().imag
    expected = conjugate.clone(), negative.clone()
    content = Content(made.untyped_storage(), 0, movable=True)
    slot = Slot(0, content, made._version, deque())
    content.slots[made._version] = slot
    slot.saved += [conjugate.detach(), negative.detach()]
    again = made.clone().untyped_storage()
    content.move(again)
    made.zero_()
    assert all(map(torch.equal, slot.saved, expected))
    assert all(tensor.untyped_storage()._cdata == again._cdata for tensor in slot.saved)


def test_what_was_recalled_from_its_way_out_may_be_computed_again_later(tmp_path: Path) -> None:
    file = SwapFile(LowerTier(tmp_path))
    book = Contents(file, Counters())
    file.limit(2**20, None)
    blocking = [noted(book, torch.ones(2**18)) for _ in range(2)]  # what is written before it
    content = noted(book, torch.arange(2**16))
    assert all(book.leave(each) for each in (*blocking, content))
    book.ask(content)
    assert content.is_here
    file.limit(None, None)
    assert content.outgoing is not None
    content.outgoing.wait()
    assert book.forget(content, lambda: torch.arange(2**16).untyped_storage())
    book.present(content, lambda _: None)
    assert content.storage is not None
    found = torch.empty(0, dtype=torch.int64).set_(content.storage)  # type: ignore[call-overload]
    assert torch.equal(found, torch.arange(2**16))
    file.close()


def noted(book: Contents, tensor: Tensor) -> Content:
    content = Content(tensor.untyped_storage(), 0, movable=True)
    content.slots[0] = Slot(0, content, 0, deque())
    book.add(content)
    return content


def test_a_saved_tensor_that_was_changed_is_refused_in_autograds_words(session: Session) -> None:
    def work() -> None:
        a = torch.ones(3, 4, requires_grad=True)
        e = a.exp()
        e.add_(1)
        e.sum().backward()  # type: ignore[no-untyped-call]

    with pytest.raises(RuntimeError) as plain:
        work()
    with pytest.raises(RuntimeError) as managed, session.step():
        work()
    said = str(plain.value).replace(", which is output 0 of Exp,", "")
    assert str(managed.value) == said


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_every_kind_of_number_comes_back(session: Session, dtype: torch.dtype) -> None:
    def work() -> tuple[Tensor | None, ...]:
        torch.manual_seed(0)
        x = torch.randn(8, 8, dtype=dtype, requires_grad=True)
        y = x.conj() * x.t() if dtype.is_complex else x.exp() * x.t()
        (y @ y).abs().sum().backward()  # type: ignore[no-untyped-call]
        return (x.grad,)

    managed = outcome(work, session.step())
    assert same(work(), managed)


def test_the_same_graph_can_be_walked_twice(session: Session) -> None:
    def work() -> tuple[Tensor | None, ...]:
        torch.manual_seed(0)
        x = torch.randn(8, 8, requires_grad=True)
        loss = (x.exp() * x.sin()).sum()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        loss.backward()  # type: ignore[no-untyped-call]
        return (x.grad,)

    managed = outcome(work, session.step())
    assert same(work(), managed)


def test_gradients_of_gradients_are_the_same(session: Session) -> None:
    def work() -> tuple[Tensor | None, ...]:
        torch.manual_seed(0)
        x = torch.randn(8, 8, requires_grad=True)
        (first,) = torch.autograd.grad((x.exp() * x.tanh()).sum(), x, create_graph=True)
        (first.square() * x).sum().backward()  # type: ignore[no-untyped-call]
        return (x.grad, first.detach())

    managed = outcome(work, session.step())
    assert same(work(), managed)


class ChangesWhatItSaved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * y.mul_(2)


def test_a_function_that_changes_what_it_saved_is_refused_the_second_time(
    session: Session,
) -> None:
    def work() -> None:
        x = torch.ones(4, 4, requires_grad=True)
        loss = ChangesWhatItSaved.apply(x).sum()  # type: ignore[no-untyped-call]
        loss.backward(retain_graph=True)
        loss.backward()

    plain = outcome(work, nullcontext())
    managed = outcome(work, session.step())
    assert plain is not None
    assert managed == plain


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_functions_give_the_same(session: Session, reentrant: bool) -> None:
    def work() -> tuple[Tensor | None, ...]:
        torch.manual_seed(0)
        x = torch.randn(8, 8, requires_grad=True)

        def inner(value: Tensor) -> Tensor:
            return nn.functional.dropout(value.exp().tanh(), 0.5)

        checkpoint(inner, x.sin(), use_reentrant=reentrant).square().sum().backward()
        return (x.grad,)

    managed = outcome(work, session.step())
    assert same(work(), managed)


def test_a_backward_pass_after_the_step_finds_everything(session: Session) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 32, requires_grad=True)
    with session.step():
        loss = x.exp().sin().exp().sum()
    with session.step():
        (torch.randn(8, 8, requires_grad=True).exp() * 2).sum().backward()  # type: ignore[no-untyped-call]
    loss.backward()  # type: ignore[no-untyped-call]
    managed = x.grad
    x.grad = None
    x.exp().sin().exp().sum().backward()  # type: ignore[no-untyped-call]
    assert same(managed, x.grad)


@pytest.mark.long
def test_a_graph_that_is_thrown_away_gives_its_extents_back(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 64, requires_grad=True)
    with Session(model, optimizer, 1, folder=tmp_path, smallest_bytes=0) as session, ballast():
        for _ in range(5):
            with session.step():
                loss = x.exp().sin().exp().sum()
            del loss
            gc.collect()
        with session.step():
            pass
        extents = session._device.swap_file.extents
        assert session.stats().swapped_out_bytes > 0
        assert extents.end_bytes - extents.free_bytes == 0
