"""What operators take beside the tensors that are seen: scratch memory of the CPU's libraries.

An operator that is not named here takes nothing. Other devices' libraries are not modelled: there
the margin of the forecast has to hold them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten
_PAGE_BYTES = 4096
_FLOAT_BYTES = 4


def workspace_bytes(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: object
) -> int:
    """What `func` allocates and frees again while it runs, its operands and results apart."""
    return 0


def hidden_result_bytes(func: OpOverload, args: tuple[Any, ...]) -> tuple[int, int] | None:
    """A result whose size fake tensors do not know: its index and its bytes."""
    if func is aten.mkldnn_rnn_layer.default and args[_TRAIN]:
        return _RNN_WORKSPACE, _lstm_workspace_bytes(args[0], hidden=args[_HIDDEN])
    return None


# places in the schema of aten.mkldnn_rnn_layer
_RNN_WORKSPACE = 3
_HIDDEN = 10
_TRAIN = 15


def _lstm_workspace_bytes(inputs: Tensor, hidden: int) -> int:
    """What oneDNN's LSTM keeps for its backward pass: `set_rnn_conf` in src/cpu/rnn/rnn_utils.hpp.

    `inputs` has the shape (steps, batch, features). Gates and hidden states of each step; states,
    cells and their derivatives at each of both ends of the layer and of each step.
    """
    steps, batch, features = inputs.shape
    wide = _leading(max(features, hidden))
    ends = 2 * (steps + 1) * batch
    areas = (
        steps * batch * _leading(4 * hidden),
        steps * batch * _leading(hidden),
        *(ends * wide,) * 3,
        *(ends * hidden,) * 2,
    )
    return sum(-(-area * _FLOAT_BYTES // _PAGE_BYTES) * _PAGE_BYTES for area in areas)


def _leading(width: int) -> int:
    """oneDNN's row length in floats: whole cache lines, and no multiple of 1 KiB."""
    padded = -(-width // 16) * 16
    return padded + 16 if padded % 256 == 0 else padded
