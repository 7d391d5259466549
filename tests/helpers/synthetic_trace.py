"""Traces of invented networks, of any size: layers forward, their gradients backward, an optimizer.

They say what a real trace would say of such a network, without torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tensile.costs import Costs
from tensile.sequence import (
    Access,
    Event,
    Kind,
    Moment,
    Operator,
    Phase,
    Recipe,
    Slot,
    Storage,
    Trace,
)

KIB = 2**10
MIB = 2**20

# 10 GB/s of memory traffic against 1 GB/s of copies: most budgets cost something, few cost nothing.
COSTS = Costs(
    device="invented",
    flops_per_s=1e11,
    moved_bytes_per_s=1e10,
    overhead_s=1e-5,
    out_bytes_per_s=1e9,
    in_bytes_per_s=1.25e9,
    copy_latency_s=2e-5,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """`y = f(x @ w)`: a matrix product, then `pointwise` cheap operators that save their input.

    `reuse` says how many products read the same saved input, `steps` how many small operators come
    between product and next layer, `shared` that its weight is the previous layer's (tied).
    """

    parameter_bytes: int
    activation_bytes: int
    intensity: int = 20  # floating-point operations per byte of its operands
    pointwise: int = 1
    reuse: int = 1
    steps: int = 0
    shared: bool = False


@dataclass(slots=True)
class _Draft:
    operators: list[Operator] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    storages: list[dict[str, object]] = field(default_factory=list)
    slots: list[dict[str, object]] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)

    @property
    def now(self) -> int:
        return len(self.operators)

    def storage(self, name: str, kind: Kind, size: int, birth: int | None = None) -> int:
        born = self.now if birth is None else birth
        self.storages.append({"name": name, "kind": kind, "bytes": size, "birth": born})
        return len(self.storages) - 1

    def run(
        self,
        name: str,
        phase: Phase,
        reads: Sequence[int] = (),
        writes: Sequence[int] = (),
        intensity: int = 0,
        workspace_bytes: int = 0,
    ) -> int:
        moved = sum(int(str(self.storages[s]["bytes"])) for s in (*reads, *writes))
        index = self.now
        self.accesses += [Access(operator=index, storage=s, writes=False) for s in reads]
        self.accesses += [Access(operator=index, storage=s, writes=True) for s in writes]
        self.operators.append(
            Operator(
                name=name,
                phase=phase,
                flops=intensity * moved,
                moved_bytes=moved,
                workspace_bytes=workspace_bytes,
            )
        )
        return index

    def see(self, moment: Moment, number: int = 0, name: str = "") -> None:
        self.events.append(Event(moment=moment, position=self.now, number=number, name=name))

    def die(self, storage: int) -> None:
        self.storages[storage]["death"] = self.now

    def pack(self, storage: int) -> int:
        number = len(self.slots)
        self.see(Moment.PACK, number)
        self.storages[storage]["kind"] = Kind.ACTIVATION
        self.storages[storage]["name"] = f"activation:{number}"
        self.slots.append({"storage": storage, "packed": self.now, "alone": None, "unpacks": []})
        return number

    def unpack(self, slot: int) -> None:
        self.see(Moment.UNPACK, slot)
        unpacks = self.slots[slot]["unpacks"]
        assert isinstance(unpacks, list)
        unpacks.append(self.now)

    def release(self, slot: int) -> None:
        self.slots[slot]["released"] = self.now
        storage = self.slots[slot]["storage"]
        assert isinstance(storage, int)
        self.die(storage)


def network(
    layers: Sequence[Layer],
    *,
    states: int = 2,
    chunk_layers: int = 2,
    gradients_die: str = "end",
    held_activation: bool = False,
) -> Trace:
    """One step of a chain of layers.

    `gradients_die` at the "end" of the step, at the "begin" of the next one, or "never" (zeroed).
    With `held_activation` Python holds the first saved activation all the time.
    """
    draft = _Draft()
    weights, gradients, optimizer_states = _found(draft, layers, states, gradients_die)
    inputs = draft.storage("input:0", Kind.INPUT, max(layers[0].activation_bytes, 64), 0)
    draft.see(Moment.BEGIN)
    draft.run("normalise", Phase.FORWARD, [inputs], [inputs])
    if gradients_die == "begin":
        for gradient in gradients.values():
            draft.die(gradient)
        gradients = {}
    elif gradients_die == "never":
        for gradient in gradients.values():
            draft.run("zero_", Phase.FORWARD, [], [gradient])
    saved, last = _forward(draft, layers, weights, inputs)
    _backward(draft, layers, weights, gradients, saved, last, inputs)
    chunks = _update(draft, layers, weights, gradients, optimizer_states, chunk_layers)
    if gradients_die == "end":
        for gradient in gradients.values():
            draft.die(gradient)
    draft.see(Moment.END)
    if held_activation and draft.slots:
        draft.slots[0]["alone"] = None
    return _finished(draft, chunks)


def _found(
    draft: _Draft, layers: Sequence[Layer], states: int, gradients_die: str
) -> tuple[list[int], dict[int, int], dict[int, list[int]]]:
    weights: list[int] = []
    gradients: dict[int, int] = {}
    optimizer_states: dict[int, list[int]] = {}
    for index, layer in enumerate(layers):
        if layer.shared and weights:
            weights.append(weights[-1])
            continue
        size = layer.parameter_bytes
        weight = draft.storage(f"parameter:{index}.weight", Kind.PARAMETER, size, 0)
        weights.append(weight)
        optimizer_states[weight] = [
            draft.storage(f"optimizer_state:{index}.weight:{s}", Kind.STATE, size, 0)
            for s in range(states)
        ]
        if gradients_die != "end":
            gradients[weight] = draft.storage(f"gradient:{index}.weight", Kind.GRADIENT, size, 0)
    return weights, gradients, optimizer_states


def _forward(
    draft: _Draft, layers: Sequence[Layer], weights: Sequence[int], inputs: int
) -> tuple[list[list[tuple[str, int]]], int]:
    saved: list[list[tuple[str, int]]] = []
    x = inputs
    for index, layer in enumerate(layers):
        steps: list[tuple[str, int]] = []
        draft.see(Moment.ENTER, name=f"{index}")
        slot = -1 if x == inputs else _slot_of(draft, x)
        if slot is None:
            slot = draft.pack(x)
        steps += [("product", slot)] * layer.reuse
        products = []
        for _ in range(layer.reuse):
            y = draft.storage(f"temporary:{draft.now}", Kind.TEMPORARY, layer.activation_bytes)
            draft.run("mm", Phase.FORWARD, [x, weights[index]], [y], layer.intensity)
            products.append(y)
        _let_go(draft, x, inputs)
        draft.see(Moment.EXIT, name=f"{index}")
        if layer.reuse > 1:
            y = draft.storage(f"temporary:{draft.now}", Kind.TEMPORARY, layer.activation_bytes)
            draft.run("add", Phase.FORWARD, products, [y])
            for product in products:
                draft.die(product)
        for _ in range(layer.steps):
            z = draft.storage(f"temporary:{draft.now}", Kind.TEMPORARY, layer.activation_bytes)
            draft.run("step", Phase.FORWARD, [y], [z])
            draft.die(y)
            y = z
        for call in range(layer.pointwise):
            source = draft.pack(y)
            steps.append(("pointwise", source))
            z = draft.storage(f"temporary:{draft.now}", Kind.TEMPORARY, layer.activation_bytes)
            operator = draft.run("gelu", Phase.FORWARD, [y], [z])
            _let_go(draft, y, inputs)
            if index + 1 < len(layers) or call + 1 < layer.pointwise:
                draft.recipes.append(
                    Recipe(
                        slot=len(draft.slots),
                        source=source,
                        module=f"{index}.gelu{call}",
                        call=0,
                        operators=(operator,),
                    )
                )
            y = z
        saved.append(steps)
        x = y
    return saved, x


def _slot_of(draft: _Draft, storage: int) -> int | None:
    return next((i for i, s in enumerate(draft.slots) if s["storage"] == storage), None)


def _let_go(draft: _Draft, storage: int, inputs: int) -> None:
    slot = _slot_of(draft, storage)
    if slot is not None and storage != inputs:
        draft.slots[slot]["alone"] = draft.now


def _backward(
    draft: _Draft,
    layers: Sequence[Layer],
    weights: Sequence[int],
    gradients: dict[int, int],
    saved: list[list[tuple[str, int]]],
    last: int,
    inputs: int,
) -> None:
    size = layers[-1].activation_bytes
    g = draft.storage(f"temporary:{draft.now}", Kind.TEMPORARY, size)
    draft.run("loss", Phase.BACKWARD, [last], [g])
    draft.die(last)
    for index in reversed(range(len(layers))):
        layer = layers[index]
        left = [slot for _, slot in saved[index]]
        for what, slot in reversed(saved[index]):
            left.pop()
            if slot >= 0:
                draft.unpack(slot)
            reads = [g, inputs if slot < 0 else int(str(draft.slots[slot]["storage"]))]
            if what == "product":
                _weight_gradient(draft, layer, weights[index], gradients, reads, index, layers)
            h = draft.storage(f"temporary:{draft.now}", Kind.TEMPORARY, layer.activation_bytes)
            operands = [g, weights[index]] if what == "product" else reads
            draft.run(f"{what}_backward", Phase.BACKWARD, operands, [h], layer.intensity, KIB)
            draft.die(g)
            g = h
            if slot >= 0 and slot not in left:
                draft.release(slot)
    draft.die(g)


def _weight_gradient(
    draft: _Draft,
    layer: Layer,
    weight: int,
    gradients: dict[int, int],
    reads: Sequence[int],
    index: int,
    layers: Sequence[Layer],
) -> None:
    name = str(draft.storages[weight]["name"]).removeprefix("parameter:")
    size = int(str(draft.storages[weight]["bytes"]))
    if weight in gradients:
        part = draft.storage(f"temporary:{draft.now}", Kind.TEMPORARY, size)
        draft.run("mm_weight", Phase.BACKWARD, reads, [part], layer.intensity)
        draft.run("add_", Phase.BACKWARD, [part, gradients[weight]], [gradients[weight]])
        draft.die(part)
    else:
        gradients[weight] = draft.storage(f"gradient:{name}", Kind.GRADIENT, size)
        draft.run("mm_weight", Phase.BACKWARD, reads, [gradients[weight]], layer.intensity)
    draft.see(Moment.GRADIENT, name=name)


def _update(
    draft: _Draft,
    layers: Sequence[Layer],
    weights: Sequence[int],
    gradients: dict[int, int],
    optimizer_states: dict[int, list[int]],
    chunk_layers: int,
) -> list[tuple[str, ...]]:
    unique = list(dict.fromkeys(weights))
    chunks = []
    for number, begin in enumerate(range(0, len(unique), chunk_layers)):
        chunk = unique[begin : begin + chunk_layers]
        draft.see(Moment.CHUNK, number)
        for weight in chunk:
            for state in optimizer_states[weight]:
                draft.run("lerp_", Phase.UPDATE, [gradients[weight], state], [state])
            draft.run("addcdiv_", Phase.UPDATE, [weight, *optimizer_states[weight]], [weight])
            if not optimizer_states[weight]:
                draft.run("add_", Phase.UPDATE, [weight, gradients[weight]], [weight])
        draft.see(Moment.CHUNK_END, number)
        chunks.append(
            tuple(str(draft.storages[w]["name"]).removeprefix("parameter:") for w in chunk)
        )
    return chunks


def _finished(draft: _Draft, chunks: Sequence[tuple[str, ...]]) -> Trace:
    end = draft.now + 1
    storages = tuple(
        Storage(**{"death": end, **described})  # type: ignore[arg-type]
        for described in draft.storages
    )
    slots = tuple(
        Slot(
            number=number,
            storage=int(str(slot["storage"])),
            packed=int(str(slot["packed"])),
            alone=slot["alone"],  # type: ignore[arg-type]
            unpacks=tuple(slot["unpacks"]),  # type: ignore[arg-type]
            released=int(str(slot["released"])),
        )
        for number, slot in enumerate(draft.slots)
    )
    return Trace(
        operators=tuple(draft.operators),
        storages=storages,
        accesses=tuple(draft.accesses),
        events=tuple(draft.events),
        slots=slots,
        recipes=tuple(draft.recipes),
        chunks=tuple(chunks),
        signature=f"invented-{len(draft.operators)}-{sum(s.bytes for s in storages)}",
    )


def stack(
    depth: int,
    *,
    parameter_bytes: int = 512 * KIB,
    activation_bytes: int = 1 * MIB,
    steps: int = 0,
    seed: int | None = None,
    **how: object,
) -> Trace:
    """A chain of `depth` like layers; with a seed their sizes vary by up to four times."""
    chance = random.Random(seed)

    def varied(size: int) -> int:
        return size if seed is None else int(size * chance.uniform(0.5, 2.0))

    layers = [
        Layer(
            parameter_bytes=varied(parameter_bytes),
            activation_bytes=varied(activation_bytes),
            steps=steps,
        )
        for _ in range(depth)
    ]
    return network(layers, **how)  # type: ignore[arg-type]


_sizes = st.sampled_from([1 * KIB, 64 * KIB, 100 * KIB, 256 * KIB, 1 * MIB, 3 * MIB])

layers = st.builds(
    Layer,
    parameter_bytes=_sizes,
    activation_bytes=_sizes,
    intensity=st.sampled_from([1, 20, 200]),
    pointwise=st.integers(0, 2),
    reuse=st.integers(1, 3),
    steps=st.integers(0, 2),
    shared=st.booleans(),
)

traces = st.builds(
    network,
    st.lists(layers, min_size=1, max_size=8),
    states=st.integers(0, 2),
    chunk_layers=st.integers(1, 3),
    gradients_die=st.sampled_from(["end", "begin", "never"]),
    held_activation=st.booleans(),
)

costs = st.builds(
    Costs,
    device=st.just("invented"),
    flops_per_s=st.sampled_from([1e9, 1e11, 1e13]),
    moved_bytes_per_s=st.sampled_from([1e9, 1e11]),
    overhead_s=st.sampled_from([0.0, 1e-5]),
    out_bytes_per_s=st.sampled_from([1e8, 1e9, 1e10]),
    in_bytes_per_s=st.sampled_from([1e8, 1e9, 1e10]),
    copy_latency_s=st.sampled_from([0.0, 1e-4]),
    remap_s_per_byte=st.sampled_from([0.0, 4e-10]),
)
