"""The Swin Transformers are the published ones, by count and against independent code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dovetail_jobs.families.image_classification.backbone import (
    VARIANTS,
    build_backbone,
    parameter_groups,
)

# microsoft/Swin-Transformer, models for ImageNet-1k.
PUBLISHED_PARAMETERS = {
    "swin_tiny": 28_288_354,
    "swin_small": 49_606_258,
    "swin_base": 87_768_224,
    "swin_large": 196_532_476,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "count"), PUBLISHED_PARAMETERS.items())
def test_a_variant_has_the_published_number_of_parameters(name: str, count: int) -> None:
    assert parameters(build_backbone(name, image_size=224, device=torch.device("meta"))) == count


def test_the_test_variant_stays_under_a_million_parameters() -> None:
    model = build_backbone("swin_test", image_size=32, channels=1, classes=10)
    assert 100_000 < parameters(model) < 1_000_000
    assert set(VARIANTS) == {*PUBLISHED_PARAMETERS, "swin_test"}


def torchvisions(name: str, classes: int) -> torch.nn.Module:
    """The same network as torchvision writes it: other code, other names, official semantics."""
    from torchvision.models.swin_transformer import SwinTransformer

    variant = VARIANTS[name]
    model: torch.nn.Module = SwinTransformer(
        patch_size=[variant.patch_size] * 2,
        embed_dim=variant.embed_dim,
        depths=list(variant.depths),
        num_heads=list(variant.heads),
        window_size=[variant.window_size] * 2,
        num_classes=classes,
    )
    return model


def torchvisions_key(key: str) -> str:
    """Of one of our parameters, its name there."""
    first, _, rest = key.partition(".")
    if first == "patch_embed":
        return "features.0." + rest.replace("proj", "0").replace("norm", "2")
    if first == "head":
        return "head." + rest.removeprefix("fc.")
    if first == "norm":
        return key
    stage, _, rest = rest.partition(".")
    if rest.startswith("downsample."):
        return f"features.{2 * int(stage)}." + rest.removeprefix("downsample.")
    rest = rest.removeprefix("blocks.").replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    return f"features.{2 * int(stage) + 1}.{rest}"


@pytest.mark.parametrize(
    ("name", "image_size"), [("swin_test", 32), ("swin_test", 48), ("swin_tiny", 224)]
)
def test_outputs_equal_torchvisions_with_the_same_weights(name: str, image_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = build_backbone(name, image_size=image_size, classes=7).eval()
    theirs = torchvisions(name, classes=7).eval()
    state = theirs.state_dict()
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            # Noise everywhere, or errors in the bias tables would hide behind their zeros.
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
            assert state[torchvisions_key(key)].shape == parameter.shape
            state[torchvisions_key(key)].copy_(parameter)
        images = torch.randn(1, 3, image_size, image_size, generator=generator)
        logits = ours(images)
        torch.testing.assert_close(logits, theirs(images), rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.01


def test_weight_decay_spares_norms_biases_and_bias_tables() -> None:
    model = build_backbone("swin_test", image_size=32, channels=1, classes=10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = parameter_groups(model)
    assert "weight_decay" not in decayed
    assert plain["weight_decay"] == 0
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    tables = [names[id(parameter)] for parameter in plain["params"] if parameter.ndim > 1]
    assert len(tables) == 6
    assert all(name.endswith("relative_position_bias_table") for name in tables)
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])


def test_drop_path_leaves_out_whole_samples_in_training_only() -> None:
    torch.manual_seed(0)
    model = build_backbone("swin_test", image_size=32, channels=1, classes=10, drop_path=0.5)
    images = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        torch.nn.init.normal_(model.get_submodule("head.fc").weight)  # type: ignore[arg-type]
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))
