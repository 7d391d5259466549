"""Valid jobs for hypothesis, and the YAML writer that fits our reader."""

from typing import Any

import yaml
from hypothesis import strategies as st

from dovetail_jobs.document import CoreLoader


class CoreDumper(yaml.SafeDumper):
    """Quotes what the core schema would read as something else, such as `1e3`."""

    yaml_implicit_resolvers = CoreLoader.yaml_implicit_resolvers


def to_yaml(value: Any, *, flow: bool = False) -> str:
    style = True if flow else None
    return yaml.dump(value, Dumper=CoreDumper, default_flow_style=style)


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
env_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
positive = st.integers(1, 10**6)
shares = st.floats(0, 1, exclude_max=True)
rates = st.floats(1e-12, 10.0)


def given(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with some of these keys."""
    return st.fixed_dictionaries({}, optional=optional)


optimizers = given(
    name=st.sampled_from(["adamw", "adam", "sgd"]),
    lr=rates,
    weight_decay=st.floats(0, 1),
    momentum=shares,
    betas=st.lists(shares, min_size=2, max_size=2),
    eps=rates,
)
trains = st.builds(
    lambda length, rest: {**length, **rest},
    st.fixed_dictionaries({"steps": positive}) | st.fixed_dictionaries({"epochs": positive}),
    given(
        clip_norm=rates,
        optimizer=optimizers,
        schedule=given(
            name=st.sampled_from(["constant", "linear", "cosine"]),
            warmup_steps=st.integers(0, 10**6),
        ),
        validate=given(every=positive, batch_size=positive),
        precision=st.sampled_from(["fp32", "bf16", "fp16"]),
        seed=st.integers(0, 2**32 - 1),
        checkpoint=given(every=positive, keep=positive),
    ),
)
_shared = {
    "version": st.just(1),
    "project": names,
    "labels": st.dictionaries(texts, texts, max_size=3),
    "env": st.dictionaries(env_names, texts, max_size=3),
    "secrets": st.dictionaries(
        env_names, st.just("env:TOKEN") | st.just("file:/run/t"), max_size=2
    ),
    "resources": given(
        cpus=st.floats(0.1, 64),
        memory=st.just("auto") | st.just("4GiB") | st.integers(0, 2**40),
        share=st.just("auto") | st.just(False),
        min_speed=st.floats(0.01, 1.0),
    ),
    "priority": st.integers(0, 100),
    "retry": given(max=st.integers(0, 100), on=st.just([]) | st.just(["failure"])),
    "max_duration": st.sampled_from(["2h", "1h30m", 45, 0.5]),
    "progress_timeout": st.sampled_from(["10m", 30, 0.5]),
}
family_jobs = st.fixed_dictionaries(
    {
        "name": names,
        "family": st.just("image_classification"),
        "params": st.fixed_dictionaries(
            {"dataset": st.just("digits"), "batch_size": positive},
            optional={
                "backbone": st.sampled_from(["swin_test", "swin_tiny", "swin_large"]),
                "image_size": st.integers(1, 8).map(lambda count: 32 * count),
                "validation_fraction": st.floats(0.01, 0.99),
                "augment": st.booleans(),
                "label_smoothing": shares,
            },
        ),
        "train": trains,
    },
    optional={
        **_shared,
        "memory": given(policy=st.just("none"), budget=st.just("auto"))
        | st.fixed_dictionaries(
            {"policy": st.just("tensile")},
            optional={"budget": st.sampled_from(["auto", "60%", "2 GiB", 4096])},
        ),
    },
)
script_jobs = st.fixed_dictionaries(
    {"name": names, "script": texts.filter(bool)},
    optional={**_shared, "memory": given(policy=st.just("none"), budget=st.just("auto"))},
)
# As a user writes them: defaults left out, and nothing that this machine could not run.
jobs = family_jobs | script_jobs
