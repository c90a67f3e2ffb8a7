"""DALL-E's encoder: the published architecture under the published names, its pixels, and what is
reported where a file or a size does not fit."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.pages import ROOT
from vlkd_cli.builders.dvae import DVAE
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.preprocessing import standardize

SMALL = {"width": 8, "layers": 2, "codes": 16}


def build(**keys):
    torch.manual_seed(0)
    return DVAE(**{"image_size": 16, "config": SMALL, **keys}).build("image").eval()


def by_hand(state: dict[str, Tensor], maps: Tensor, layers: int) -> Tensor:
    """The encoder as the paper's appendix and dall_e/encoder.py define it, written out."""

    def convolve(name: str, maps: Tensor) -> Tensor:
        weight = state[f"{name}.w"]
        return F.conv2d(maps, weight, state[f"{name}.b"], padding=weight.shape[-1] // 2)

    maps = convolve("blocks.input", maps)
    for group in range(1, 5):
        for block in range(1, layers + 1):
            name = f"blocks.group_{group}.block_{block}"
            inner = maps
            for number in range(1, 5):
                inner = convolve(f"{name}.res_path.conv_{number}", inner.relu())
            widens = f"{name}.id_path.w" in state
            shortcut = convolve(f"{name}.id_path", maps) if widens else maps
            maps = shortcut + inner / (4 * layers) ** 2
        maps = F.max_pool2d(maps, 2) if group < 4 else maps
    return convolve("blocks.output.conv", maps.relu())


def test_logits_are_those_of_the_published_architecture():
    backbone = build().double()
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    wanted = by_hand(backbone.encoder.state_dict(), images, layers=2)
    assert wanted.shape == (2, 16, 2, 3)
    tokens = backbone(images).tokens.values
    torch.testing.assert_close(tokens, wanted.flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(backbone.encoder(images), wanted, rtol=1e-12, atol=1e-12)


def test_the_full_size_has_the_names_and_shapes_of_the_published_file():
    with torch.device("meta"):
        encoder = DVAE().build("image").encoder
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes["blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["blocks.group_1.block_2.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert shapes["blocks.group_4.block_1.id_path.w"] == (2048, 1024, 1, 1)
    assert shapes["blocks.group_4.block_2.res_path.conv_4.b"] == (2048,)
    assert shapes["blocks.output.conv.w"] == (8192, 2048, 1, 1)
    # 8 blocks of 4 convolutions, 3 shortcuts that widen, first and last, with weight and bias each.
    assert len(shapes) == 2 * (8 * 4 + 3 + 2)


def test_pixels_are_mapped_as_dall_e_maps_them():
    backbone = build()
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    mapped = standardize(pixels, backbone.input)[0, :, 0, 0]
    torch.testing.assert_close(mapped, torch.tensor([0.1, 0.8 * 0.2 + 0.1, 0.9]))


def test_a_file_of_weights_is_loaded(tmp_path):
    torch.manual_seed(1)
    wanted = DVAE(image_size=16, config=SMALL).build("image").encoder.state_dict()
    torch.save(wanted, tmp_path / "dalle_encoder.pth")
    loaded = build(pretrained=str(tmp_path / "dalle_encoder.pth")).encoder.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in wanted.items())


def test_the_line_of_the_docs_makes_a_state_dict_of_a_pickled_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = build().encoder
    torch.save(pickled, "encoder.pkl")
    line = (ROOT / "docs" / "snippets" / "dalle_encoder.txt").read_text(encoding="utf-8")
    python, option, code = shlex.split(line)
    assert (python, option) == ("python", "-c")
    exec(code)
    loaded = build(pretrained="dalle_encoder.pth").encoder.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in pickled.state_dict().items())


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match=r"DALL-E's encoder: .*encoder\.pth"):
        build(pretrained=str(tmp_path / "encoder.pth"))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"image_size": 20}, "image_size 20 is not a multiple of 8. Choose e.g. 24."),
        ({"pretrained": True}, "there is nothing to download"),
        ({"pretrained": "there/isnt.pth"}, "no file or folder 'there/isnt.pth'"),
        ({"config": {"witdh": 8}}, "config.witdh: unknown key. Did you mean 'width'?"),
        ({"config": {"width": 6}}, "config.width: expected a multiple of 4"),
        ({"config": {"codes": 0}}, "config.codes: expected an integer above 0, got 0"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(keys, line):
    with pytest.raises((RecipeError, WeightsError)) as raised:
        build(**keys)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_its_model_is_listed_by_name_only():
    assert [row.name for row in DVAE.list_models()] == ["dalle_encoder"]
    assert DVAE.list_models("text") == DVAE.list_models(pattern="vit*") == []
    assert DVAE.list_models(pretrained_only=True) == []


def test_the_feature_is_the_mean_of_what_codes_are_read_from():
    backbone = build()
    images = torch.rand(2, 3, 16, 16)
    places = backbone.encoder.blocks[:-1](images).relu()
    output = backbone(images, tokens=False)
    assert output.tokens is None and backbone.width == 64
    torch.testing.assert_close(output.feature, places.mean((2, 3)))


def test_what_is_exported_loads_in_the_package_and_in_a_recipe(tmp_path, monkeypatch):
    backbone = build()
    how = backbone.export(tmp_path, tmp_path, {"image_size": 16, "config": SMALL, "train": "none"})
    assert how.recipe.pop("builder") == "dvae"
    images = torch.rand(2, 3, 16, 16)
    again = DVAE(**how.recipe).build("image")
    torch.testing.assert_close(again(images).feature, backbone(images).feature)

    def encoder(n_hid: int, n_blk_per_group: int, vocab_size: int) -> torch.nn.Module:
        config = {"width": n_hid, "layers": n_blk_per_group, "codes": vocab_size}
        return DVAE(image_size=16, config=config).build("image").encoder

    # The package DALL-E is not a dependency; its class has the same names below `blocks`.
    names = {"dall_e": SimpleNamespace(Encoder=encoder), "safetensors": safetensors}
    exec(how.python, names)
    feature = eval(how.feature, {**names, "images": images})
    torch.testing.assert_close(feature, backbone(images).feature)


def test_paths_of_weights_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(build().encoder.state_dict(), Path(tmp_path) / "e.pth")
    build(pretrained="~/e.pth")
