"""Lets torchvision import next to a CPU-only torch.

The torchvision wheel of PyPI is a CUDA build: its native library does not load beside a CPU torch,
the operator `torchvision::nms` is then never declared, and `import torchvision` fails with
"operator torchvision::nms does not exist". timm and others import torchvision and fail with it.

`apply` declares the missing operators before torchvision is imported and gives `nms` a correct CPU
kernel. It acts only where torch has no CUDA and the native library does not load. What stays out
of reach there: roi_pool, deform_conv2d and the native image codecs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def needed() -> bool:
    """Whether torchvision is installed and would not import without help."""
    return importlib.util.find_spec("torchvision") is not None and _native_library_is_missing()


def apply() -> bool:
    """Declare the operators if they are missing, then import torchvision; True where that was done.

    Call it before the first import of torchvision. Calling it again changes nothing.
    """
    if not needed():
        return False
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        _declare()
        from torchvision.ops import boxes

        # The one guard before nms that asks for the native library; the kernel is ours now.
        boxes._assert_has_ops = lambda: None
    return True


@cache
def _native_library_is_missing() -> bool:
    import torch

    if torch.version.cuda is not None:
        return False
    if "torchvision" in sys.modules and not hasattr(torch.ops.torchvision, "nms"):
        raise ImportError("import torchvision only after dovetail_jobs.torchvision_shim.apply()")
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    assert found.submodule_search_locations
    folder = found.submodule_search_locations[0]
    libraries = [name for name in os.listdir(folder) if name.startswith("_C.")]
    try:
        for name in libraries:
            torch.ops.load_library(os.path.join(folder, name))  # type: ignore[no-untyped-call]
    except OSError:
        return True
    return not libraries


@cache
def _declare() -> Any:
    """The operators live as long as this object: the cache holds it."""
    import torch

    # torch leaves these three untyped.
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    return library


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression as torchvision's CPU kernel does it.

    dets (N, 4) as x1, y1, x2, y2; scores (N,). Returns the kept indices (K,), best score first; a
    box goes when its IoU with a kept one is above `iou_threshold`. Equal scores keep their order.
    """
    import torch

    x1, y1, x2, y2 = dets.unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        width = torch.minimum(x2[rest], x2[best]) - torch.maximum(x1[rest], x1[best])
        height = torch.minimum(y2[rest], y2[best]) - torch.maximum(y1[rest], y1[best])
        overlap = width.clamp(min=0) * height.clamp(min=0)
        iou = overlap / (areas[rest] + areas[best] - overlap)
        # A box without area gives nan here, and nan suppresses nothing.
        order = rest[~(iou > iou_threshold)]
    return torch.stack(kept) if kept else order
