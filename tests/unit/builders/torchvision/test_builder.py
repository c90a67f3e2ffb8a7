from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from vlkd_cli.builders.torchvision.anatomy import (
    auxiliary_names,
    dissect,
    drop_side_classifiers,
    fixes_its_size,
    open_without_memory,
    strip_classifier,
)
from vlkd_cli.builders.torchvision.builder import TorchVision, image_input, names
from vlkd_cli.errors import RecipeError, WeightsError

FAMILIES = [
    "alexnet",
    "densenet121",
    "googlenet",
    "mobilenet_v3_small",
    "resnet18",
    "squeezenet1_1",
    "vgg11",
    "vit_b_32",
]


def feature_of(name: str) -> tuple[int, tuple[int, ...]]:
    """The reported width and the shape that a run on the meta device gives."""
    size = image_input(name).size_px
    anatomy, network = open_without_memory(
        name, {"image_size": size[0]} if fixes_its_size(name) else {}
    )
    strip_classifier(network, anatomy)
    with torch.no_grad():
        return anatomy.width, tuple(
            network.to("meta").eval()(torch.empty(2, 3, *size, device="meta")).shape
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_feature_has_the_reported_width(name: str) -> None:
    width, shape = feature_of(name)
    assert shape == (2, width)


@pytest.mark.slow
def test_every_classification_model_builds_on_the_meta_device() -> None:
    listed = models.list_models(module=models)
    assert names() == listed and len(listed) >= 80
    for name in listed:
        width, shape = feature_of(name)
        assert shape == (2, width), name


def test_the_feature_is_what_the_classifier_reads() -> None:
    torch.manual_seed(0)
    backbone = TorchVision(model="mobilenet_v3_small", image_size=64).build("image").eval()
    whole = models.mobilenet_v3_small().eval()
    state = backbone.encoder.state_dict()
    whole.load_state_dict(
        {name: state.get(name, tensor) for name, tensor in whole.state_dict().items()}
    )
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole.classifier[3](backbone(images).feature), whole(images))


def test_dropout_that_only_served_the_classifier_goes_with_it() -> None:
    assert dissect("mobilenet_v2", {}).dropouts == ("classifier.0",)
    assert dissect("vgg11", {}).dropouts == ("classifier.5",)
    backbone = TorchVision(model="squeezenet1_1", image_size=64).build("image").train()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images).feature, backbone(images).feature)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_side_classifiers_are_removed(name: str) -> None:
    with torch.device("meta"):
        network = models.get_model_builder(name)(weights=None, init_weights=False)
    assert auxiliary_names(name)
    drop_side_classifiers(network, name)
    assert not set(network.state_dict()) & auxiliary_names(name)
    assert not network.aux_logits


def test_the_input_is_that_of_the_published_weights() -> None:
    expected = TorchVision(model="mobilenet_v2").build("image").input
    preset = models.MobileNet_V2_Weights.DEFAULT.transforms()
    assert expected is not None
    assert (expected.size_px, expected.resize_px, expected.interpolation) == (
        (224, 224),
        preset.resize_size[0],
        "bilinear",
    )
    assert expected.mean == (0.485, 0.456, 0.406)
    assert image_input("efficientnet_b7").size_px == (600, 600)


def test_another_image_size_has_the_same_crop_fraction() -> None:
    expected = TorchVision(model="resnet18", image_size=112).build("image").input
    assert expected is not None
    assert (expected.size_px, expected.resize_px) == ((112, 112), 128)


def test_transformers_are_built_for_another_image_size() -> None:
    backbone = TorchVision(model="vit_b_32", image_size=64).build("image")
    assert backbone(torch.zeros(1, 3, 64, 64)).feature.shape == (1, 768)
    assert backbone(torch.zeros(1, 3, 64, 64)).tokens.values.shape == (1, 5, 768)


def test_tokens_are_the_places_of_the_last_map() -> None:
    torch.manual_seed(0)
    backbone = TorchVision(model="resnet18", image_size=64).build("image").eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = backbone(images).tokens
    assert tokens.values.shape == (2, 4, 512) and tokens.mask.all()
    torch.testing.assert_close(tokens.values.mean(1), backbone(images).feature)


def test_constructor_arguments_change_the_size() -> None:
    assert (
        TorchVision(model="mobilenet_v2", config={"width_mult": 0.25}).build("image").width == 1280
    )
    with pytest.raises(
        RecipeError,
        match="torchvision model 'resnet18': .*unexpected keyword argument 'width_mult'",
    ):
        TorchVision(model="resnet18", config={"width_mult": 0.25}).build("image")


def test_a_local_file_in_half_precision_is_loaded_and_its_classifier_dropped(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    whole = models.resnet18(num_classes=7)
    save_file(
        {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in whole.state_dict().items()
        },
        tmp_path / "a.safetensors",
    )
    backbone = TorchVision(model="resnet18", pretrained=str(tmp_path / "a.safetensors")).build(
        "image"
    )
    assert backbone.encoder.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(
        backbone.encoder.conv1.weight, whole.conv1.weight, rtol=1e-3, atol=1e-4
    )


def test_old_densenet_names_are_understood(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = models.densenet121().state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): tensor
        for name, tensor in state.items()
    }
    assert set(old) != set(state)
    torch.save(old, tmp_path / "a.pth")
    backbone = TorchVision(model="densenet121", pretrained=str(tmp_path / "a.pth")).build("image")
    assert all(tensor.equal(state[name]) for name, tensor in backbone.encoder.state_dict().items())


def test_mistakes_are_named_with_their_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"'resnet51' is unknown\. Did you mean 'resnet50'\?"):
        TorchVision(model="resnet51").build("image")
    with pytest.raises(
        RecipeError, match=r"no weights 'IMAGENET1K_V3'\. Did you mean 'IMAGENET1K_V1'\?"
    ):
        TorchVision(model="resnet18", pretrained="IMAGENET1K_V3").build("image")
    torch.save(models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(
        WeightsError,
        match=r"'resnet18': weights of .* do not fit: the model has no 'layer1\.2\.conv1\.weight'",
    ):
        TorchVision(model="resnet18", pretrained=str(tmp_path / "resnet34.pth")).build("image")


def test_weights_that_cannot_be_fetched_name_the_file_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **keys: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    expected = (
        rf"resnet18.*Put resnet18-f37072fd\.pth into {tmp_path}/cache/torchvision/checkpoints\."
    )
    with pytest.raises(WeightsError, match=expected) as error:
        TorchVision(model="resnet18", pretrained=True, cache_dir=str(tmp_path / "cache")).build(
            "image"
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"model": "googlenet", "config": {"aux_logits": True}}, r"config\.aux_logits"),
        ({"model": "resnet18", "config": {"num_classes": 9}}, r"config\.num_classes"),
        ({"model": "resnet18", "config": {"weights": "DEFAULT"}}, r"config\.weights"),
        ({"model": "vit_b_32", "config": {"image_size": 64}}, r"config\.image_size"),
        ({"model": "resnet18", "config": {"norm_layer": "batch"}}, "not callable"),
        ({"model": "inception_v3", "image_size": 32}, "images of 32 x 32 pixels"),
        ({"model": "vit_b_32", "image_size": 40}, "indivisible by patch size"),
        ({"model": "maxvit_t", "image_size": 64}, "images of 64 x 64 pixels"),
    ],
)
def test_what_a_tower_cannot_have_is_one_line_at_build(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=rf"^torchvision model '.*': .*{reason}") as error:
        TorchVision(**keys).build("image")
    assert "\n" not in str(error.value)


def test_published_weights_are_read_as_tensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = models.resnet18().state_dict()
    folder = tmp_path / "torchvision" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(whole, folder / "resnet18-f37072fd.pth")
    keys = {"model": "resnet18", "pretrained": True, "cache_dir": str(tmp_path)}
    loaded = TorchVision(**keys).build("image").encoder.state_dict()
    assert all(tensor.equal(whole[name]) for name, tensor in loaded.items())
    torch.save({"state_dict": whole, "run": Path}, folder / "resnet18-f37072fd.pth")
    with pytest.raises(WeightsError, match=r"holds 'pathlib\S*\.Path' next to its tensors"):
        TorchVision(**keys).build("image")


@pytest.mark.shared
def test_real_mobilenet_recognizes_real_photos(shared: Path) -> None:
    weights = shared / "data" / "weights" / "mobilenet_v2_imagenet.safetensors"
    backbone = TorchVision(model="mobilenet_v2", pretrained=str(weights)).build("image").eval()
    from safetensors.torch import load_file

    whole = models.mobilenet_v2()
    whole.load_state_dict(load_file(weights))
    whole.eval()
    lines = (shared / "data" / "imagenet_sample" / "labels.tsv").read_text().splitlines()
    folder = shared / "data" / "imagenet_sample"
    preset = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    rows = [line.split("\t") for line in lines[1:13]]
    images = torch.stack([preset(Image.open(_photo(folder, row)).convert("RGB")) for row in rows])
    labels = np.array([_label(row) for row in rows])
    with torch.no_grad():
        features = backbone(images).feature
        torch.testing.assert_close(whole.classifier(features), whole(images), rtol=1e-4, atol=1e-4)
        found = whole.classifier(features).argmax(1).numpy()
    assert (found == labels).mean() > 0.7


def _photo(folder: Path, row: list[str]) -> Path:
    return next(
        folder / "images" / cell.removeprefix("images/")
        for cell in row
        if cell.lower().endswith((".jpg", ".jpeg"))
    )


def _label(row: list[str]) -> int:
    return int(next(cell for cell in row if cell.isdigit()))
