"""What operators take beside the tensors that are seen: scratch memory of the CPU's libraries.

An operator that is not named here takes nothing. Other devices' libraries are not modelled: there
the margin of the forecast has to hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    estimate = _ESTIMATES.get(func)
    return int(estimate(args)) if estimate is not None and _on_cpu(args) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Result number `index` takes `bytes`, which fake tensors do not know; `late_bytes` of them are
    not touched by the operator that makes it, so no memory is behind them yet.
    """

    index: int
    bytes: int
    late_bytes: int


def hidden_result(func: OpOverload, args: tuple[Any, ...]) -> Hidden | None:
    """A result whose size fake tensors do not know."""
    if func is aten.mkldnn_rnn_layer.default and args[_TRAIN]:
        ends, rest = _lstm_areas(args[0], hidden=args[_HIDDEN])
        late = ends[_STATES:]
        return Hidden(index=3, bytes=_paged(ends) + _paged(rest), late_bytes=_paged(late))
    return None


# places in the schema of aten.mkldnn_rnn_layer
_HIDDEN = 10
_TRAIN = 15
_STATES = 2  # the first areas of `_lstm_areas` belong to the forward pass, the rest to the backward


def _lstm_areas(inputs: Tensor, hidden: int) -> tuple[list[int], list[int]]:
    """What oneDNN's LSTM keeps for its backward pass, as numbers of floats: `set_rnn_conf` in its
    src/cpu/rnn/rnn_utils.hpp.

    `inputs` has the shape (steps, batch, features). First the states and cells, then their
    derivatives, at both ends of the layer and of each step; apart from them the gates and outputs.
    """
    steps, batch, features = inputs.shape
    wide = 2 * (steps + 1) * batch * _leading(max(features, hidden))
    narrow = 2 * (steps + 1) * batch * hidden
    gates = steps * batch * _leading(4 * hidden)
    return [wide, narrow, wide, wide, narrow], [gates, steps * batch * _leading(hidden)]


def _paged(areas: list[int]) -> int:
    return sum(-(-area * _FLOAT_BYTES // _PAGE_BYTES) * _PAGE_BYTES for area in areas)


def _lstm_forward(args: tuple[Any, ...]) -> int:
    """The gates of all steps, and both weights in oneDNN's own order."""
    return _lstm_gates(args) + _size(args[1]) + _size(args[2])


def _lstm_backward(args: tuple[Any, ...]) -> int:
    """The gates' derivatives; both weights and their derivatives in oneDNN's own order."""
    return _lstm_gates(args) + 2 * (_size(args[1]) + _size(args[2]))


def _lstm_gates(args: tuple[Any, ...]) -> int:
    steps, batch, _ = args[0].shape
    return int(steps * batch * args[1].shape[0] * _FLOAT_BYTES)


def _convolution(args: tuple[Any, ...]) -> int:
    """oneDNN takes channels in blocks: it copies the inputs to that order and the result back."""
    source, weight, transposed = args[0], args[1], args[6]
    if not _is_reordered(source):
        return _blocked_weight(weight) + _put_last(weight)
    spatial = _spatial(source, weight, args[3], args[4], args[5], transposed, args[7])
    channels = weight.shape[1] * args[8] if transposed else weight.shape[0]
    plain = source.shape[0] * channels * spatial * source.element_size()
    blocked = source.shape[0] * _whole_blocks(channels) * spatial * source.element_size()
    copies = _blocked(source) + blocked
    more = (
        max(copies + blocked - plain, 2 * blocked) if transposed else max(copies - plain, blocked)
    )
    return int(more) + _blocked_weight(weight)


def _convolution_backward(args: tuple[Any, ...]) -> int:
    """First the derivative of the input is made, then that of the weight, each through copies."""
    gradient, source, weight, wanted = args[0], args[1], args[2], args[10]
    if not _is_reordered(source):
        reordered = _blocked_weight(weight) + _size(weight) * (_places(weight) > 1)
        return max(_accumulated(weight), reordered) + _put_last(weight)
    result = _size(source) * bool(wanted[0])
    other = _size(weight) * bool(wanted[1])
    first = second = 0
    if wanted[0]:
        inside = _blocked(source, padded=True)
        first = max(_blocked(gradient) + inside, inside + result) + _blocked_weight(weight)
        if _skips(args):  # it is made in a place of its own first, and put in order in another
            first = max(first, result + 2 * _size(source))
    if wanted[1]:
        made = _accumulated(weight)
        second = result + max(_blocked(source) + _blocked(gradient) + made, made + other)
    return max(first, second) - result - other if first or second else 0


def _put_last(weight: Tensor) -> int:
    """Where the inputs' channels are last, the weight is put so too; one place has no order."""
    last = weight.dim() != 4 or weight.is_contiguous(memory_format=torch.channels_last)
    return 0 if last else _size(weight)


def _accumulated(weight: Tensor) -> int:
    """The weight's derivative is summed in floats, whatever the weight is made of."""
    return _blocked_weight(weight) * max(_FLOAT_BYTES // weight.element_size(), 1)


def _places(weight: Tensor) -> int:
    return weight.numel() // (weight.shape[0] * weight.shape[1])


def _skips(args: tuple[Any, ...]) -> bool:
    """A stride over places, in a convolution that mixes channels and is not transposed."""
    weight, stride, transposed = args[2], args[4], args[7]
    return not transposed and weight.shape[1] > 1 and any(step > 1 for step in stride)


def _flash_backward(args: tuple[Any, ...]) -> int:
    return _size(args[1])  # one more gradient of the queries, in the kernel's own order


def _softmax(args: tuple[Any, ...]) -> int:
    return _put_in_order(args[0])


def _softmax_backward(args: tuple[Any, ...]) -> int:
    return _put_in_order(args[0]) + _put_in_order(args[1])


def _put_in_order(tensor: Tensor) -> int:
    """What a kernel copies that wants its operand contiguous."""
    return 0 if tensor.is_contiguous() else _size(tensor)


def _roll(args: tuple[Any, ...]) -> int:
    """Several dimensions are rolled one after the other: the last copy and the one before it."""
    shifts = args[1]
    return _size(args[0]) if isinstance(shifts, list | tuple) and len(shifts) > 1 else 0


_ESTIMATES: dict[OpOverload, Callable[[tuple[Any, ...]], int]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.mkldnn_rnn_layer.default: _lstm_forward,
    aten.mkldnn_rnn_layer_backward.default: _lstm_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _flash_backward,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
    aten.roll.default: _roll,
}

_BLOCK = 16  # channels in a block, for processors with AVX-512; others take 8 and round up less
_FEW_CHANNELS = 4  # the first layer's images are read as they are


def _is_reordered(source: Tensor) -> bool:
    """Channels that are last already are taken as they are."""
    if source.dim() == 4 and source.shape[1] > 1:
        return not source.is_contiguous(memory_format=torch.channels_last)
    return source.dim() in (3, 4, 5)


def _blocked(tensor: Tensor, padded: bool = False) -> int:
    channels = tensor.shape[1]
    if channels < _FEW_CHANNELS and not padded:
        return 0
    return _size(tensor) // channels * _whole_blocks(channels)


def _blocked_weight(weight: Tensor) -> int:
    if weight.shape[1] < _FEW_CHANNELS:
        return 0
    return _size(weight) // weight.shape[0] * _whole_blocks(weight.shape[0])


def _whole_blocks(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK


def _spatial(
    source: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
) -> int:
    """Number of places in one channel of the result."""
    places = 1
    for axis in range(source.dim() - 2):
        step, pad, gap = (_at(value, axis) for value in (stride, padding, dilation))
        size, reach = source.shape[axis + 2], gap * (weight.shape[axis + 2] - 1)
        if transposed:
            places *= (size - 1) * step - 2 * pad + reach + _at(output_padding, axis) + 1
        else:
            places *= (size + 2 * pad - reach - 1) // step + 1
    return places


def _at(values: Sequence[int], axis: int) -> int:
    return values[axis] if len(values) > 1 else values[0]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _on_cpu(args: tuple[Any, ...]) -> bool:
    return isinstance(args[0], Tensor) and args[0].device.type == "cpu"


def _leading(width: int) -> int:
    """oneDNN's row length in floats: whole cache lines, and no multiple of 1 KiB."""
    padded = -(-width // 16) * 16
    return padded + 16 if padded % 256 == 0 else padded
