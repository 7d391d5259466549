"""The baseline: jobs/examples/swin-digits.yaml as anybody would write it in plain PyTorch. Prints
steps per second after the warm-up.

python benchmarks/plain_loop.py STEPS WARM_UP_STEPS
"""

from __future__ import annotations

import sys
import time

import torch
from running_platform import EXAMPLE
from torch.nn.functional import cross_entropy, interpolate

from dovetail_jobs.families.image_classification.backbone import build_backbone, parameter_groups
from dovetail_jobs.families.image_classification.digits import load_digits
from dovetail_jobs.load import load_file


def main() -> None:
    steps, warm_up = int(sys.argv[1]), int(sys.argv[2])
    spec = load_file(EXAMPLE)
    assert spec.train is not None
    batch_size = spec.params["batch_size"]
    assert isinstance(batch_size, int)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = load_digits()
    model = build_backbone("swin_test", image_size=32, channels=1, classes=10)
    groups = list(parameter_groups(model))
    optimizer = torch.optim.AdamW(groups, lr=spec.train.optimizer.lr, weight_decay=0.05)
    began_s = 0.0
    for step in range(1, steps + 1):
        chosen = torch.randint(len(labels), (batch_size,))
        small = images[chosen].unsqueeze(1).float().div(8).sub(1)
        batch = interpolate(small, (32, 32), mode="bilinear")
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(batch), labels[chosen])
        loss.backward()
        if spec.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.train.clip_norm)
        optimizer.step()
        loss.item()
        if step == warm_up:
            began_s = time.perf_counter()
    print((steps - warm_up) / (time.perf_counter() - began_s))


if __name__ == "__main__":
    main()
