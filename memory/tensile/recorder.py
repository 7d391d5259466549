"""Records every aten call of a step under fake tensors: what it reads, writes and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from tensile.lives import Life, Lives
from tensile.sequence import Access, Operator, Phase
from tensile.workspace import hidden_result, workspace_bytes

aten = torch.ops.aten
_LIFTING = frozenset({aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.lift.default})


class TraceError(RuntimeError):
    """The step cannot be traced with fake tensors; the message says why, and what would help."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stands above the fake mode and sees each call before it. `phase` is set by the tracer.

    A number that the step asks for (`.item()`, formatting) is answered with one: it does not exist.
    """

    def __init__(
        self, lives: Lives, mode: FakeTensorMode, foreign: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.accesses: list[tuple[int, Life, bool]] = []
        self.updating = False
        self._lives = lives
        self._mode = mode
        self._foreign = foreign
        self._overflow: set[Life] = set()

    def begin_step(self) -> None:
        self.operators = []
        self.accesses = []

    def begin(self) -> None:
        """An empty operator before all others, so that nothing which the step makes seems to have
        been there before it.
        """
        self._note("begin", 0, 0, {})

    def phase(self) -> Phase:
        if torch._C._current_graph_task_id() != -1:  # type: ignore[attr-defined,unused-ignore]
            return Phase.BACKWARD
        return Phase.UPDATE if self.updating else Phase.FORWARD

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in _LIFTING:  # a constant that the step wrote down becomes a fake one here
            return self._recorded(func, args, kwargs)
        if any(
            not isinstance(tensor, FakeTensor) for tensor in _tensors((*args, *kwargs.values()))
        ):
            args, kwargs = tree_map_only(torch.Tensor, self._faked, (args, kwargs))
        if func is aten._local_scalar_dense.default:
            return self._number(args[0])
        if func is aten._amp_foreach_non_finite_check_and_unscale_.default:
            self._overflow.add(self._lives.found(args[1]))
        return self._recorded(func, args, kwargs)

    def _recorded(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        result = func(*args, **kwargs)
        self._record(func, args, kwargs, result)
        return result

    def _faked(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._foreign(tensor)

    def _number(self, tensor: FakeTensor) -> bool | int | float | complex:
        if tensor.constant is None and tensor.dtype == torch.bool:
            raise TraceError(
                "the step branches on the value of a tensor, which a trace without values cannot "
                "follow; compute the condition outside of the step, or let the first step run"
            )
        life = self._lives.found(tensor)
        self._note("aten._local_scalar_dense.default", 0, tensor.element_size(), {life: False})
        if tensor.constant is not None:  # the step wrote it down itself, so it does exist
            with no_dispatch():
                return tensor.constant.item()
        if life in self._overflow:  # GradScaler's found_inf: the usual step is a finite one
            return 0.0
        return (1.0 + 0.0j) if tensor.is_complex() else 1.0 if tensor.is_floating_point() else 1

    def _record(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        touched: dict[Life, bool] = {}
        moved_bytes = 0
        for tensor, writes in () if func in _LIFTING else _operands(func, args, kwargs):
            life = self._lives.found(tensor)
            touched[life] = touched.get(life, False) or writes
            moved_bytes += tensor.numel() * tensor.element_size()
        writes_any = any(touched.values())
        fresh = False
        for tensor in _strided((result,)):
            known = self._lives.find(tensor)
            life = self._lives.made(tensor, len(self.operators))
            if known is None:
                fresh = True
                touched[life] = True
                moved_bytes += tensor.numel() * tensor.element_size()
        if not (writes_any or fresh):
            return  # a view, or metadata
        hidden = hidden_result(func, args)
        if hidden is not None:
            life = self._lives.made(result[hidden.index], len(self.operators))
            life.bytes, life.late_bytes = hidden.bytes, hidden.late_bytes
        workspace = workspace_bytes(func, args, kwargs, result)
        flops = _flops(func, args, kwargs, result)
        self._note(str(func), flops, moved_bytes, touched, workspace)

    def _note(
        self, name: str, flops: int, moved_bytes: int, touched: dict[Life, bool], workspace: int = 0
    ) -> None:
        self.accesses += [(len(self.operators), life, writes) for life, writes in touched.items()]
        self.operators.append(
            Operator(
                name=name,
                phase=self.phase(),
                flops=flops,
                moved_bytes=moved_bytes,
                workspace_bytes=workspace,
            )
        )
        self._lives.position = len(self.operators)


def numbered(accesses: Sequence[tuple[int, Life, bool]], number: dict[Life, int]) -> list[Access]:
    return [
        Access(operator=operator, storage=number[life], writes=writes)
        for operator, life, writes in accesses
    ]


def _operands(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[torch.Tensor, bool]]:
    """Every tensor that is handed over, and whether the schema says that it is written."""
    for index, (name, writes) in enumerate(_arguments(func)):
        value = args[index] if index < len(args) else kwargs.get(name)
        for tensor in _strided((value,)):
            yield tensor, writes


@cache
def _arguments(func: OpOverload) -> tuple[tuple[str, bool], ...]:
    return tuple(
        (argument.name, argument.alias_info is not None and argument.alias_info.is_write)
        for argument in func._schema.arguments
    )


def _tensors(values: Sequence[object]) -> Iterator[torch.Tensor]:
    """Those among the values, and in lists among them: aten's arguments nest no deeper."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _strided(values: Sequence[object]) -> Iterator[torch.Tensor]:
    return (tensor for tensor in _tensors(values) if tensor.layout == torch.strided)


def _flops(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> int:
    formula = flop_registry.get(func.overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0
