"""Every image builder of the catalogue with every text builder, composed and trained for one
step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.meshes import small_tower
from vlkd_cli import catalog
from vlkd_cli.preprocessing import standardize
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.tower import Tower

SIZES: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2}
IMAGE_TOWERS: dict[str, dict[str, Any]] = {
    "openclip": {"config": {**SIZES, "image_size": 32, "patch_size": 16}},
    "torchvision": {"model": "mobilenet_v2", "config": {"width_mult": 0.1}, "image_size": 64},
    "timm": {"model": "test_vit", "image_size": 64},
    "dvae": {"image_size": 32, "config": {"width": 8, "layers": 1, "codes": 16}},
    "huggingface": {"modality": "image", "config": {**SIZES, "image_size": 32, "patch_size": 16}},
}
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "openclip": {"config": {**SIZES, "context_length": 16, "vocab_size": 600}},
    "huggingface": {"config": {**SIZES, "vocab_size": 600, "max_length": 32}},
    "sbert": {"model": "glove.txt"},
    "adapters": {
        "config": {**SIZES, "vocab_size": 600, "max_length": 32},
        "adapter": {"name": "lora"},
    },
}
MESH_TOWERS: dict[str, dict[str, Any]] = {"pointnet": small_tower()}
CAPTIONS = ["a red square", "a blue circle above a square", "two dogs", "a car"]


def builders_of(modality: str) -> list[str]:
    return [
        name
        for name in catalog.names("builder")
        if modality in catalog.load("builder", name).modalities
    ]


@pytest.fixture(scope="module")
def word_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("words") / "glove.txt"
    words = ["a", "red", "square", "blue", "circle", "above", "two", "dogs", "car"]
    file.write_text(
        "".join(
            f"{word} {' '.join(str((row + 1) * (column + 1) % 7) for column in range(8))}\n"
            for row, word in enumerate(words)
        )
    )
    return file


def build(name: str, modality: str, word_file: Path, **keys: Any) -> Tower:
    if name == "adapters" and not adapter_rules.is_installed():
        pytest.skip("needs the extra 'adapters'")
    torch.manual_seed(0)
    towers = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS, "mesh": MESH_TOWERS}
    own = dict(towers[modality][name])
    if own.get("model") == "glove.txt":
        own["model"] = str(word_file)
    return assemble(modality, TowerSpec.model_validate({"builder": name, **own, **keys}))


def test_every_builder_of_the_catalogue_is_composed_here() -> None:
    assert sorted(builders_of("image")) == sorted(IMAGE_TOWERS)
    assert sorted(builders_of("text")) == sorted(TEXT_TOWERS)
    assert sorted(builders_of("mesh")) == sorted(MESH_TOWERS)


def inputs_of(tower: Tower) -> Any:
    if tower.modality == "text":
        return tower.input(CAPTIONS)
    generator = torch.Generator().manual_seed(0)
    if tower.modality == "mesh":
        return torch.rand(len(CAPTIONS), tower.input.points, 3, generator=generator) - 0.5
    return torch.randint(
        0,
        256,
        (len(CAPTIONS), 3, *tower.input.size_px),
        dtype=torch.uint8,
        generator=generator,
    )


def cosine_step(towers: list[Tower]) -> list[str]:
    """Names of the parameters that one step of a cosine loss left as they were."""
    parameters = [
        (f"{tower.name}.{name}", parameter)
        for tower in towers
        for name, parameter in tower.named_parameters()
    ]
    before = {name: parameter.detach().clone() for name, parameter in parameters}
    optimizer = torch.optim.SGD(
        [parameter for _, parameter in parameters if parameter.requires_grad], lr=1.0
    )
    image, text = (F.normalize(tower.train().encode(inputs_of(tower)), dim=-1) for tower in towers)
    loss = F.cross_entropy(10 * image @ text.T, torch.arange(len(CAPTIONS)))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    return [
        name
        for name, parameter in parameters
        if parameter.requires_grad and parameter.equal(before[name])
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("text", builders_of("text"))
@pytest.mark.parametrize("image", builders_of("image"))
def test_every_pair_of_builders_takes_a_training_step(
    image: str, text: str, word_file: Path
) -> None:
    head = {"head": {"name": "linear", "width": 16}}
    towers = [build(image, "image", word_file, **head), build(text, "text", word_file, **head)]
    still = cosine_step(towers)
    assert not [name for name in still if ".head." in name]
    # Some gradients are zero by definition, e.g. of the key's bias in attention or of LoRA's first
    # matrix at the start.
    learning = sum(parameter.requires_grad for tower in towers for parameter in tower.parameters())
    assert len(still) < learning / 2


@pytest.fixture(
    params=[
        *(("image", name) for name in IMAGE_TOWERS),
        *(("text", name) for name in TEXT_TOWERS),
        *(("mesh", name) for name in MESH_TOWERS),
    ],
    ids="-".join,
)
def tower(request: pytest.FixtureRequest, word_file: Path) -> Iterator[Tower]:
    modality, name = request.param
    yield build(name, modality, word_file).eval()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_every_tower_fulfills_the_contract(tower: Tower) -> None:
    inputs = inputs_of(tower)
    features = tower.features(inputs)
    assert (
        features.shape == (len(CAPTIONS), tower.feature_width) and features.dtype == torch.float32
    )
    torch.testing.assert_close(tower.encode(inputs), tower.project(features))
    assert tower.digest() == tower.digest()
    layers = [tower.layer_of(name) for name, _ in tower.named_parameters()]
    assert min(layers) == 0 and max(layers) == tower.num_layers - 1
    assert set(tower.trainable_state()) <= set(tower.state_dict())
    if tower.encoder.token_width is not None:
        prepared = standardize(inputs, tower.input) if tower.modality == "image" else inputs
        tokens = tower.encoder(prepared).tokens
        assert tokens.values.shape == (*tokens.mask.shape, tower.encoder.token_width)
        assert tokens.mask.dtype == torch.bool and tokens.mask.any(1).all()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_sample_is_encoded_alike_in_any_batch(tower: Tower) -> None:
    if tower.modality != "text":
        whole = inputs_of(tower)
        torch.testing.assert_close(
            tower.encode(whole)[:1], tower.encode(whole[:1]), rtol=1e-4, atol=1e-5
        )
        return
    together = tower.encode(tower.input(CAPTIONS))
    for row, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(
            together[row : row + 1], tower.encode(tower.input([caption])), rtol=1e-4, atol=1e-5
        )
