"""A job's text, loaded or refused as `job.yaml` in a folder."""

from pathlib import Path

import pytest

from dovetail_jobs.errors import SpecError
from dovetail_jobs.load import load_text
from dovetail_jobs.spec import JobSpec

HERE = Path(__file__).parent
JOB = """\
name: digits
family: image_classification
params: {backbone: swin_test, dataset: digits, batch_size: 8}
train: {steps: 10}
"""


def load(text: str, *overrides: str, base: Path = HERE) -> JobSpec:
    return load_text(text, file="job.yaml", base=base, overrides=overrides)


def refused(text: str, *overrides: str, base: Path = HERE) -> str:
    """What the user reads; fails if the job is not refused."""
    with pytest.raises(SpecError) as caught:
        load(text, *overrides, base=base)
    return str(caught.value)
