"""Random programs over square matrices: views, slices, transposes, changes in place, one thing
under two names. An operation takes the values so far, and gives one more or changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

Operation = tuple[str, int, int]  # a name, and which of the values it is done to

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda x: (x * 0.1).exp(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "square": lambda x: x * x,
    "transposed": lambda x: x.t(),
    "half": lambda x: x[:, : len(x) // 2].repeat(1, 2),
    "strided": lambda x: x[::2].repeat_interleave(2, 0),
    "row": lambda x: x[1].expand(len(x), len(x)),
    "flat": lambda x: x.reshape(-1).view(len(x), len(x)),
    "contiguous": lambda x: x.t().contiguous(),
    "softmax": lambda x: x.softmax(-1),
    "normed": lambda x: nn.functional.layer_norm(x, (len(x),)),
    "dropped": lambda x: nn.functional.dropout(x, 0.5),
    "complexed": lambda x: (
        torch.view_as_real(torch.view_as_complex(x.view(-1, 2).contiguous()))
        .reshape(len(x), len(x))
        .mul(2)
    ),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "times": torch.mul,
    "matmul": torch.matmul,
    "over": lambda a, b: a / (b.abs() + 1),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "joined": lambda a, b: torch.cat([a[:, :3], b[:, 3:]], 1) * 1.5,
}
INPLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "add_": lambda x: x.add_(1.0),
    "mul_": lambda x: x.mul_(0.5),
    "relu_": torch.relu_,
    "row add_": lambda x: x[0].add_(1.0),
    "zero column": lambda x: x[:, 1].zero_(),
}
operations: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 99), st.just(0)),
    st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 99), st.integers(0, 99)),
    st.tuples(st.sampled_from(sorted(INPLACE)), st.integers(0, 99), st.just(0)),
)


def perform(operation: Operation, values: list[Tensor]) -> None:
    """Raises RuntimeError where PyTorch refuses it, as a change in place of an expanded tensor."""
    name, first, second = operation
    x = values[first % len(values)]
    if name in UNARY:
        values.append(UNARY[name](x))
    elif name in BINARY:
        values.append(BINARY[name](x, values[second % len(values)]))
    else:
        INPLACE[name](x)
