"""The family learns real digits, and its accuracy is exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dovetail_jobs.families.image_classification.params import Params
from dovetail_jobs.families.image_classification.workload import ImageClassification, build
from dovetail_jobs.spec import Train
from dovetail_jobs.workload import Draw, WorkloadContext
from dovetail_workers import optimizers
from helpers.training import run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(train: dict[str, Any] | None = None, **params: Any) -> ImageClassification:
    settings = Train.model_validate({"steps": 1, **(train or {})})
    given = {"backbone": "swin_test", "dataset": "digits", "batch_size": 8, **params}
    context = WorkloadContext(
        train=settings,
        seed=0,
        device=torch.device("cpu"),
        global_batch=8,
        micro_batch=8,
        threads=1,
        optimizer=lambda groups: optimizers.build(settings.optimizer, groups),
    )
    torch.manual_seed(0)
    return build(Params.model_validate(given), context)


def test_accuracy_counts_every_validation_sample_once_whatever_the_batch() -> None:
    counted = []
    for batch_size in (1000, 7):
        workload = built({"validate": {"batch_size": batch_size}}, validation_fraction=0.05)
        model = workload.models["model"].module.eval()
        torch.manual_seed(1)
        torch.nn.init.normal_(model.get_submodule("head.fc").weight)  # type: ignore[arg-type]
        with torch.no_grad():
            counted.append(workload.validate()["accuracy"])
    source = workload._validation
    draws = [Draw(index=index, epoch=0, stream_seed=0) for index in range(len(source))]
    with torch.no_grad():
        images, labels = source.batch(draws)
        right = sum(model(images).argmax(1) == labels)
    assert counted == [int(right) / len(source)] * 2
    assert 0 < counted[0] < 1


def test_the_loss_is_the_cross_entropy_with_smoothing() -> None:
    workload = built(label_smoothing=0.2)
    model = workload.models["model"].module
    draws = [Draw(index=index, epoch=0, stream_seed=0) for index in range(8)]
    batch = workload.feeds["train"].source.batch(draws)
    images, labels = batch
    result = workload.step({"train": batch})
    with torch.no_grad():
        logs = model(images).log_softmax(1)
    target = torch.nn.functional.one_hot(labels, 10) * 0.8 + 0.02
    assert result.samples == 8
    assert result.loss.item() == pytest.approx(float(-(target * logs).sum(1).mean()), rel=1e-5)


@pytest.mark.long
def test_a_few_steps_already_tell_digits_apart(tmp_path: Path) -> None:
    trained = run(
        tmp_path,
        {
            "steps": 40,
            "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.05},
            "schedule": {"name": "cosine", "warmup_steps": 6},
            "clip_norm": 1.0,
        },
        family="image_classification",
        params={
            "backbone": "swin_test",
            "dataset": "digits",
            "batch_size": 32,
            "image_size": 32,
            "validation_fraction": 0.1,
        },
    )
    loss = trained.metric("loss")
    assert loss[1] == pytest.approx(2.30, abs=0.02)  # the logarithm of ten classes
    assert loss[40] < 1.9
    assert trained.metric("accuracy")[40] > 0.3  # by chance it is 0.1
