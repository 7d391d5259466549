"""A small GPT learns to draw handwritten digits, pixel by pixel: a program of its own that shares
its device through tensile.

Each digit of scikit-learn's set is a sequence: its class, then its 64 pixels of 17 greys, each
predicted from those before it (Image GPT, Chen et al., ICML 2020). By hand
(`python gpt_digits.py`) it has no budget; under Dovetail with `resources.share` the session joins
the broker of its device by itself.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import tensile

GREYS, CLASSES, PIXELS = 17, 10, 64
HELD_OUT = 297


class Block(nn.Module):
    """Pre-norm attention and MLP, as GPT-2 has them; (batch, positions, width) in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        batch, positions, _ = hidden.shape
        parts = self.mix(self.before(hidden)).view(batch, positions, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.between(hidden))


class DigitsGPT(nn.Module):
    """(batch, 1 + pixels) tokens → (batch, pixels, greys) logits of the pixel after each."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(GREYS + CLASSES, width)
        self.places = nn.Embedding(PIXELS, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, GREYS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.words(tokens[:, :-1]) + self.places.weight
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def loss(self, tokens: Tensor) -> Tensor:
        """Nats per pixel."""
        logits = self(tokens).flatten(0, 1)
        return functional.cross_entropy(logits, tokens[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--checkpoint-every", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = sequences()
    train, held_out = digits[:-HELD_OUT], digits[-HELD_OUT:]
    model = DigitsGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    step = resume(model, optimizer)

    def train_step(batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def batch_of(number: int) -> Tensor:
        draw = torch.Generator().manual_seed(number)  # a resumed run sees what it would have seen
        return train[torch.randint(len(train), (options.batch_size,), generator=draw)]

    with tensile.Session(model, optimizer) as session:
        session.prepare(train_step, batch_of(step + 1))
        report_memory(session)  # before a step is taken: what the process held by then is no tensor
        while step < options.steps:
            step += 1
            loss = session.attempt(train_step, batch_of(step))
            metrics = {"loss": float(loss)}
            if step == options.steps:
                metrics["held_out"] = evaluate(session, model, held_out, options.batch_size)
            report({"step": step, "steps": options.steps, "metrics": metrics})
            report_memory(session)
            if step % 10 == 0:
                print(f"step {step}: {float(loss):.4f} nats per pixel", flush=True)
            if step % options.checkpoint_every == 0:
                save(session, model, optimizer, step)


def sequences() -> Tensor:
    """(images, 1 + pixels): the class as a token of its own, then the greys."""
    images, classes = load_digits(return_X_y=True)
    found = torch.cat([torch.tensor(classes)[:, None] + GREYS, torch.tensor(images).long()], dim=1)
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]


def evaluate(session: tensile.Session, model: DigitsGPT, digits: Tensor, batch_size: int) -> float:
    """Nats per pixel over all of `digits`."""
    with session.evaluate():
        sums = [float(model.loss(part)) * len(part) for part in digits.split(batch_size)]
    return sum(sums) / len(digits)


def resume(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step of the checkpoint in `$DOVETAIL_RESUME`, loaded; 0 where there is none."""
    folder = os.environ.get("DOVETAIL_RESUME")
    if not folder:
        return 0
    state = torch.load(Path(folder, "state.pt"), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


def save(
    session: tensile.Session, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write a folder under `$DOVETAIL_CHECKPOINTS`, then say so: Dovetail stores it."""
    if "DOVETAIL_CHECKPOINTS" not in os.environ:
        return
    folder = Path(os.environ["DOVETAIL_CHECKPOINTS"], f"step-{step:06d}")
    folder.mkdir(parents=True)
    with session.staging():
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / "state.pt")
    report({"step": step, "checkpoint": str(folder)})


def report_memory(session: tensile.Session) -> None:
    """What the session counted, for `dovetail show` and `dovetail devices`."""
    stats, forecast = session.stats(), session.forecast
    found = {
        "base_bytes": stats.base_bytes,
        "peak_bytes": stats.peak_bytes,
        "forecast_bytes": None if forecast is None else forecast.peak_bytes,
        "budget_bytes": stats.budget_bytes,
        "swapped_out_bytes": stats.swapped_out_bytes,
        "swapped_in_bytes": stats.swapped_in_bytes,
        "stall_s": stats.stall_s,
        "replans": stats.replans,
    }
    report({"type": "memory", **found})


def report(line: dict[str, object]) -> None:
    """Append one JSON line to `$DOVETAIL_REPORTS`, in one write; without Dovetail, nothing."""
    if "DOVETAIL_REPORTS" in os.environ:
        with open(os.environ["DOVETAIL_REPORTS"], "ab", buffering=0) as reports:
            reports.write(json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
