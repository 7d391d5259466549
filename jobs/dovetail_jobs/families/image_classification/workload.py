"""Image classification: one Swin Transformer, cross entropy, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn.functional import cross_entropy

from dovetail_jobs.families.image_classification.backbone import build_backbone, parameter_groups
from dovetail_jobs.families.image_classification.digits import open_digits
from dovetail_jobs.families.image_classification.folder import open_folder
from dovetail_jobs.families.image_classification.images import ImageBatch
from dovetail_jobs.families.image_classification.params import Params
from dovetail_jobs.workload import Draw, Feed, Member, StepResult, WorkloadContext


def build(params: Params, context: WorkloadContext) -> ImageClassification:
    """The model of `params` on the context's device. Raises UserError for data it cannot use."""
    return ImageClassification(params, context)


class ImageClassification:
    phases = ("train",)

    def __init__(self, params: Params, context: WorkloadContext) -> None:
        data = (
            open_digits(params)
            if params.dataset == "digits"
            else open_folder(params, threads=context.threads)
        )
        assert params.image_size is not None
        self._model = build_backbone(
            params.backbone,
            image_size=params.image_size,
            channels=data.channels,
            classes=data.classes,
            drop_path=params.drop_path,
        ).to(context.device)
        self._device = context.device
        self._label_smoothing = params.label_smoothing
        self._validation = data.validation
        self._validation_batch = context.validation_batch
        self.models = {"model": Member(module=self._model)}
        self.optimizers = {"model": context.optimizer(parameter_groups(self._model))}
        self.feeds = {
            "train": Feed(source=data.train, batch_size=context.global_batch, prefetch=data.decodes)
        }

    def step(self, batches: Mapping[str, Any]) -> StepResult:
        batch: ImageBatch = batches["train"]
        logits = self._model(batch.images.to(self._device, non_blocking=True))
        labels = batch.labels.to(self._device, non_blocking=True)
        loss = cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        return StepResult(loss=loss, samples=len(labels))

    def validate(self) -> dict[str, float]:
        """`accuracy`: the share of the whole validation set that is classified correctly."""
        correct, total = 0, len(self._validation)
        for start in range(0, total, self._validation_batch):
            stop = min(start + self._validation_batch, total)
            draws = [Draw(index=index, epoch=0, stream_seed=0) for index in range(start, stop)]
            batch: ImageBatch = self._validation.batch(draws)
            answers = self._model(batch.images.to(self._device)).argmax(1)
            correct += int((answers == batch.labels.to(self._device)).sum())
        return {"accuracy": correct / total}
