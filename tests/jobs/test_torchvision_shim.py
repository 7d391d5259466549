"""torchvision imports beside whatever torch is installed, and its nms is right."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, sys
from dovetail_jobs import torchvision_shim

before = "torch" in sys.modules
needed = torchvision_shim.needed()
lazy = "torchvision" not in sys.modules
applied = [torchvision_shim.apply(), torchvision_shim.apply()]
import torch, torchvision
from torchvision.ops import batched_nms, nms

def reference(boxes, scores, threshold):
    "The definition, one pair of boxes at a time, in plain Python."
    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])
    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        overlap = max(width, 0.0) * max(height, 0.0)
        return overlap / (area(a) + area(b) - overlap)
    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept

generator = torch.Generator().manual_seed(0)
equal = []
for count in (1, 2, 40, 200):
    corners = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
    sizes = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30 + 1
    boxes, scores = torch.cat([corners, corners + sizes], 1), torch.rand(count, generator=generator)
    for threshold in (0.0, 0.3, 0.5, 0.9):
        kept = nms(boxes, scores.double(), threshold).tolist()
        equal.append(kept == reference(boxes.tolist(), scores.tolist(), threshold))
twins = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 10.]])
print(json.dumps({
    "torch_before": before, "needed": needed, "lazy": lazy, "applied": applied, "equal": equal,
    "cuda": torch.version.cuda,
    "empty": nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist(),
    "by_class": batched_nms(twins, torch.tensor([.9, .8]), torch.tensor([0, 1]), 0.5).tolist(),
    "same_class": batched_nms(twins, torch.tensor([.9, .8]), torch.tensor([1, 1]), 0.5).tolist(),
    "timm": bool(__import__("timm.models.swin_transformer")),
}))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )


@pytest.mark.long
def test_torchvision_and_timm_import_and_nms_equals_its_definition() -> None:
    ended = run(PROGRAM)
    assert ended.returncode == 0, ended.stderr
    facts: dict[str, Any] = json.loads(ended.stdout)
    assert not facts["torch_before"]
    assert facts["lazy"]
    assert facts["applied"] == [facts["needed"]] * 2
    assert not (facts["needed"] and facts["cuda"])
    assert len(facts["equal"]) == 16
    assert all(facts["equal"])
    assert facts["empty"] == []
    assert facts["by_class"] == [0, 1]
    assert facts["same_class"] == [0]
    assert facts["timm"]


@pytest.mark.long
def test_the_shim_is_needed_exactly_where_torchvision_fails_without_it() -> None:
    alone = run("import torchvision")
    needed = run("from dovetail_jobs import torchvision_shim as s; raise SystemExit(s.needed())")
    assert alone.returncode == needed.returncode
    if alone.returncode:
        assert "torchvision::nms does not exist" in alone.stderr
