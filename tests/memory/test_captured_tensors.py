"""What a step brings along and autograd saves has its place in the plan, as the batch has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.invented_costs import COSTS
from helpers.small_trainings import differences
from tensile import Session, trace
from tensile.sequence import Kind, Trace

ROWS, WIDTH, STEPS = 1024, 128, 3
Step = Callable[[Any], None]


@dataclass
class Case:
    """A step that brings tensors along, and all that it changes."""

    models: dict[str, nn.Module]
    optimizers: list[torch.optim.Optimizer]
    step: Step
    batch: Any
    beside: list[Tensor] = field(default_factory=list)

    def contents(self) -> dict[str, Any]:
        models = {key: model.state_dict() for key, model in self.models.items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"models": models, "optimizers": optimizers, "beside": self.beside}


class Keeper:
    """Holds tensors where no walk over a closure finds them."""

    __slots__ = ("tensors",)

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors


def deep(outputs: int = 4) -> nn.Sequential:
    hidden = [layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, outputs))


def classifier(loss: Callable[[nn.Module, Tensor, Tensor], Callable[[Any], Tensor]]) -> Case:
    """`loss(model, inputs, targets)` is a loss of the batch, which is both of them."""
    torch.manual_seed(0)
    model = deep()
    inputs, targets = torch.randn(ROWS, WIDTH), torch.randint(4, (ROWS,))
    of_batch = loss(model, inputs, targets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        of_batch(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Case({"": model}, [optimizer], step, (inputs, targets))


def target(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Any], Tensor]:
    return lambda batch: functional.cross_entropy(model(batch[0]), targets)


def whole_input(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Any], Tensor]:
    own = inputs.clone()
    return lambda batch: functional.cross_entropy(model(own), batch[1])


def class_weights(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Any], Tensor]:
    weights = torch.ones(4)
    return lambda batch: functional.cross_entropy(model(batch[0]), batch[1], weight=weights)


def mask(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Any], Tensor]:
    model.register_parameter("scale", nn.Parameter(torch.ones(WIDTH)))
    kept = (torch.rand(ROWS, WIDTH) > 0.1).float()
    scale = model.scale
    assert isinstance(scale, Tensor)
    return lambda batch: functional.cross_entropy(model(batch[0] * scale * kept), batch[1])


def teacher(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Any], Tensor]:
    wise = nn.Linear(WIDTH, 4)
    return lambda batch: functional.mse_loss(model(batch[0]), wise(batch[0]).detach())


def hidden(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Any], Tensor]:
    keeper = Keeper((torch.rand(ROWS, 4) > 0.1).float(), torch.ones(4))

    def loss(batch: Any) -> Tensor:
        kept, weights = keeper.tensors
        return functional.cross_entropy(model(batch[0]) * kept, batch[1], weight=weights)

    return loss


def data_set(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Any], Tensor]:
    rows = [torch.randn(ROWS, WIDTH) for _ in range(2)] + [torch.zeros(1)] * 2000
    return lambda batch: functional.cross_entropy(model(rows[1]), batch[1])


def adversarial() -> Case:
    """Two models against each other; the real data are the closure's."""
    torch.manual_seed(0)
    maker, judge = deep(WIDTH), deep(1)
    real = torch.randn(ROWS, WIDTH)
    made = torch.optim.Adam(maker.parameters(), lr=1e-3)
    judged = torch.optim.Adam(judge.parameters(), lr=1e-3)

    def step(noise: Tensor) -> None:
        invented = maker(noise)
        judged.zero_grad()
        loss = functional.softplus(-judge(real)).mean()
        loss = loss + functional.softplus(judge(invented.detach())).mean()
        loss.backward()
        judged.step()
        made.zero_grad()
        functional.softplus(-judge(invented)).mean().backward()  # type: ignore[no-untyped-call]
        made.step()

    models: dict[str, nn.Module] = {"maker": maker, "judge": judge}
    return Case(models, [made, judged], step, torch.randn(ROWS, WIDTH))


CASES: dict[str, Callable[[], Case]] = {
    "target": lambda: classifier(target),
    "input": lambda: classifier(whole_input),
    "class weights": lambda: classifier(class_weights),
    "mask": lambda: classifier(mask),
    "teacher": lambda: classifier(teacher),
    "held where no walk finds it": lambda: classifier(hidden),
    "rows of a data set": lambda: classifier(data_set),
    "real data of two models": adversarial,
}


QUICK = ("target", "mask", "held where no walk finds it", "real data of two models")


@pytest.mark.parametrize(
    "kind", [*QUICK, *(pytest.param(k, marks=pytest.mark.long) for k in CASES if k not in QUICK)]
)
def test_a_plan_is_followed_to_its_end_and_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    expected = CASES[kind]()
    for _ in range(STEPS):
        expected.step(expected.batch)
    case = CASES[kind]()
    with Session(case.models, case.optimizers, 0.5, folder=tmp_path) as session:
        session.prepare(case.step, case.batch, costs=COSTS)
        for _ in range(STEPS):
            with session.step():
                case.step(case.batch)
        stats = session.stats()
    assert differences(case.contents(), expected.contents()) == []
    assert stats.deviations == 0, stats.notes
    assert stats.swapped_out_bytes + stats.recomputed_bytes > 0


def traced(case: Case) -> Trace:
    return trace(case.step, case.models, case.optimizers, case.batch)


@pytest.mark.parametrize("kind", ["input", "held where no walk finds it"])
def test_what_is_brought_along_is_an_input_that_is_found(kind: str) -> None:
    found = [s for s in traced(CASES[kind]()).storages if s.name.startswith("input:captured")]
    assert found
    assert all(storage.kind is Kind.INPUT and storage.birth == 0 for storage in found)


def test_what_is_brought_along_and_not_used_takes_nothing() -> None:
    unused = [torch.randn(ROWS, WIDTH), torch.empty(2, 2).to_mkldnn()]
    case = classifier(target)

    def step(batch: Any) -> None:
        if unused:
            case.step(batch)

    count = len(traced(case).storages)
    assert len(trace(step, case.models, case.optimizers, case.batch).storages) == count


def test_a_tensor_that_a_step_writes_or_wants_a_gradient_of_is_as_before() -> None:
    """A bank of features keeps no graph of a trace, and an image that is attacked no gradient."""
    torch.manual_seed(0)
    model = deep()
    bank, image = torch.zeros(ROWS, 4), torch.randn(ROWS, WIDTH, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(batch: Tensor) -> None:
        found = model(batch + image)
        bank.copy_(found)
        bank.sum().backward()  # type: ignore[no-untyped-call]
        bank.detach_()
        optimizer.step()
        optimizer.zero_grad()

    before = bank._version
    trace(step, model, optimizer, torch.randn(ROWS, WIDTH))
    assert torch.equal(bank, torch.zeros(ROWS, 4))
    assert (bank._version, bank.requires_grad, bank.grad_fn) == (before, False, None)
    assert image.grad is None
    step(torch.randn(ROWS, WIDTH))
    assert image.grad is not None
