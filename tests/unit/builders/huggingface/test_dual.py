"""Halves of dual encoders are the library's own, and go back into its format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from tests.support.dual_encoders import CAPTIONS, DUALS, make_dual
from tests.unit.engine.recipes import tiny_recipe, train
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.huggingface.dual import LogitStart
from vlkd_cli.builders.huggingface.image import patchified
from vlkd_cli.builders.huggingface.library_encoder import LibraryEncoder
from vlkd_cli.engine.build_composition import build_composition
from vlkd_cli.engine.export import export
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.towers.assemble import assemble

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=DUALS)
def dual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A kind, its folder and the library's model."""
    folder = tmp_path_factory.mktemp(request.param.replace("_", "-"))
    return request.param, folder, make_dual(request.param, folder)


def halves(folder: Path, **keys: Any) -> tuple[Any, Any]:
    image, text = (HuggingFace(model=str(folder), **keys).build(each) for each in ("image", "text"))
    return image.eval(), text.eval()


def logits(image: Any, text: Any, images: Tensor) -> Tensor:
    """Of pictures (rows) and the captions, as vlkd's objectives compute them."""
    pictures, texts = image(images).feature, text(text.input(CAPTIONS)).feature
    start = image.origin.start
    cosines = torch.nn.functional.cosine_similarity(pictures[:, None], texts[None], dim=-1)
    return start.scale * cosines + (start.bias or 0)


def librarys(kind: str, folder: Path, whole: Any, images: Tensor) -> Tensor:
    padding = "max_length" if kind.startswith("siglip") else True
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = dict(tokenizer(CAPTIONS, padding=padding, return_tensors="pt"))
    given.pop("token_type_ids", None)
    pictures = patchified(images, 8) if kind == "siglip2" else {"pixel_values": images}
    return whole(**given, **pictures).logits_per_image


def pictures_of(image: Any) -> Tensor:
    return torch.randn(3, 3, *image.input.size_px, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_of_the_two_halves_equal_the_librarys(dual: Any) -> None:
    kind, folder, whole = dual
    image, text = halves(folder)
    assert image.width == text.width and image.origin.start == text.origin.start
    images = pictures_of(image)
    expected = librarys(kind, folder, whole, images)
    torch.testing.assert_close(logits(image, text, images), expected, rtol=0, atol=1e-5)
    alone = text(text.input(CAPTIONS[:1])).feature
    torch.testing.assert_close(text(text.input(CAPTIONS)).feature[:1], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_half_and_a_pair_go_back_into_the_librarys_format(dual: Any, tmp_path: Path) -> None:
    kind, folder, whole = dual
    image, text = halves(folder)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for half in (image, text):
        for parameter in half.parameters():
            parameter.mul_(1.01)
    images = pictures_of(image)
    half_folder, pair_folder = tmp_path / "half", tmp_path / "pair"
    half_folder.mkdir()
    how = image.export(half_folder, half_folder, {})
    assert "other half" in how.note and isinstance(image, LibraryEncoder)
    loaded = AutoModel.from_pretrained(half_folder)
    assert type(loaded) is type(whole)
    own = {name.removeprefix("encoder.") for name, _ in image.named_parameters()}
    for name, tensor in loaded.state_dict().items():
        if name in own:
            assert tensor.equal(image.state_dict()[f"encoder.{name}"])
        elif name.startswith("text_") or "logit" in name:
            assert tensor.equal(before[name])
    again = HuggingFace(model=str(half_folder)).build("image").eval()
    torch.testing.assert_close(again(images).feature, image(images).feature)
    start = LogitStart(20.0, -5.0)
    image.origin.write(pair_folder, image.encoder, text.encoder, start=start)
    image.exported(pair_folder, pair_folder, {})
    text.exported(pair_folder, pair_folder, {})
    trained = AutoModel.from_pretrained(pair_folder).eval()
    cosines = (logits(image, text, images) - (image.origin.start.bias or 0)) / image.origin.start[0]
    expected = 20.0 * cosines - (5.0 if hasattr(whole, "logit_bias") else 0.0)
    found = librarys(kind, pair_folder, trained, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_all_that_is_trainable_in_a_half_gets_a_gradient(dual: Any) -> None:
    _, folder, _ = dual
    for half in halves(folder):
        given = pictures_of(half) if half.modality == "image" else half.input(CAPTIONS)
        encoded = half.train()(given)
        (encoded.feature.square().sum() + encoded.tokens.values.square().sum()).backward()
        waiting = [
            name
            for name, parameter in half.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert waiting == []


def test_start_of_the_objectives_is_the_trained_one(tmp_path: Path) -> None:
    make_dual("siglip", tmp_path)
    image = HuggingFace(model=str(tmp_path)).build("image")
    assert image.origin.start.scale == pytest.approx(math.exp(2.5))
    assert image.origin.start.bias == -3.0


def test_a_factor_that_the_library_bounds_is_bounded_here_and_not_exported_above(
    tmp_path: Path,
) -> None:
    whole = make_dual("aimv2", tmp_path)
    whole.logit_scale.data.fill_(5.0)  # exp(5) is 148, and AIMv2 applies at most 100
    whole.save_pretrained(tmp_path)
    image = HuggingFace(model=str(tmp_path)).build("image")
    assert image.origin.start.scale == 100.0
    with pytest.raises(WeightsError, match=r"factor 120\.0 is above the 100 that Aimv2Model"):
        image.origin.write(tmp_path, image.encoder, start=LogitStart(120.0))


def test_what_has_no_effect_or_no_other_half_is_refused(tmp_path: Path) -> None:
    make_dual("clip", tmp_path)
    with pytest.raises(RecipeError, match="own_pooler: has no effect on a dual encoder"):
        HuggingFace(model=str(tmp_path), own_pooler=True).build("image")
    with pytest.raises(RecipeError, match="`tokenizer: clip` does not go with"):
        HuggingFace(model=str(tmp_path), tokenizer="clip").build("text")
    fresh = HuggingFace(model=str(tmp_path), pretrained=False).build("image")
    with pytest.raises(RecipeError, match="other half of this 'clip' has random weights"):
        fresh.export(tmp_path, tmp_path, {})


def recipe_of(folder: Path, **distiller: Any) -> dict[str, Any]:
    """A recipe that trains both halves for a step."""
    half = {"builder": "huggingface", "model": str(folder)}
    return tiny_recipe(
        towers={"image": half, "text": half},
        distillers=[{"logit_scale": "from towers", **distiller}],
        data={"num_samples": 16, "size_px": 32},
        train={"epochs": 1, "batch_size": 8},
        optimizer={"lr": 1e-3},
        schedule={},
    )


@pytest.mark.slow
def test_a_trained_pair_becomes_one_dual_encoder_again(tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    whole = make_dual("siglip", folder)
    run = train(tmp_path, recipe_of(folder, name="siglip"))
    export(target=str(run), output=tmp_path / "out")
    trained = AutoModel.from_pretrained(tmp_path / "out" / "dual_encoder").eval()
    assert type(trained) is type(whole)
    assert float(trained.logit_scale) != pytest.approx(2.5, abs=1e-6)
    assert float(trained.logit_scale) == pytest.approx(2.5, abs=0.1)
    assert float(trained.logit_bias) == pytest.approx(-3.0, abs=0.1)
    image, text = halves(tmp_path / "out" / "dual_encoder")
    images = pictures_of(image)
    single = HuggingFace(model=str(tmp_path / "out" / "image")).build("image").eval()
    torch.testing.assert_close(image(images).feature, single(images).feature)
    with torch.no_grad():
        found = librarys("siglip", tmp_path / "out" / "dual_encoder", trained, images)
    torch.testing.assert_close(logits(image, text, images), found, rtol=0, atol=1e-4)


def test_a_start_from_towers_needs_halves_and_drops_a_bound_below_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dual("clip", tmp_path)
    halved = {"builder": "huggingface", "model": str(tmp_path)}
    keys = {"name": "infonce", "logit_scale": "from towers", "max_logit_scale": 5.0}
    text = {"distillers": [keys], "data": {"reader": "shapes"}}

    def composed(image: dict[str, Any]) -> Any:
        recipe = Recipe.model_validate({"towers": {"image": image, "text": halved}, **text})
        towers = {name: assemble(name, spec) for name, spec in recipe.towers.items()}
        return build_composition(recipe, towers)

    distiller = composed(halved).objectives[0].distiller
    assert float(distiller.scale) == pytest.approx(math.exp(2.5))
    assert distiller.max_logit_scale is None
    assert "above max_logit_scale 5" in capsys.readouterr().err
    other = {"builder": "timm", "model": "test_vit", "head": {"name": "linear", "width": 8}}
    with pytest.raises(RecipeError, match="are not halves of a dual encoder. Write a number"):
        composed(other)
