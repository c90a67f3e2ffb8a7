from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.vision_types import VISION_TYPES
from vlkd_cli.checkpoint import Checkpoint, Source
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble

IMAGE: dict[str, Any] = {
    "builder": "openclip",
    "config": {"layers": 2, "width": 32, "heads": 2, "image_size": 32, "patch_size": 16},
}
TEXT: dict[str, Any] = {
    "builder": "openclip",
    "config": {"layers": 2, "width": 32, "heads": 2, "context_length": 16, "vocab_size": 600},
}


def spec(**keys: Any) -> TowerSpec:
    return TowerSpec.model_validate(keys)


def test_the_modality_comes_from_the_section_the_builder_or_the_name() -> None:
    assert assemble("image", spec(**IMAGE)).modality == "image"
    assert assemble("teacher_text", spec(**TEXT)).modality == "text"
    assert assemble("student", spec(**TEXT, modality="text")).modality == "text"
    assert (
        assemble("student", spec(builder="torchvision", model="mobilenet_v3_small")).modality
        == "image"
    )
    with pytest.raises(
        RecipeError, match="tower 'student': it is not known whether it takes images or texts"
    ):
        assemble("student", spec(**TEXT))
    with pytest.raises(
        RecipeError,
        match=(
            r"builder 'torchvision' builds image towers, not text towers\. Choose one of: openclip,"
            r" hugging"
        ),
    ):
        assemble("text", spec(builder="torchvision", model="resnet18", modality="text"))
    assert assemble("text", spec(builder="torchvision", model="resnet18")).modality == "image"


def test_pooler_and_head_set_the_widths() -> None:
    tower = assemble(
        "text",
        spec(
            **TEXT,
            pooler={"name": "attention", "heads": 2},
            head={"name": "mlp", "width": 8, "layers": 2},
        ),
    )
    assert (tower.feature_width, tower.width) == (32, 8)
    inputs = tower.input(["a dog", "two cats on a mat"])
    assert tower.features(inputs).shape == (2, 32)
    assert tower.encode(inputs).shape == (2, 8)
    torch.testing.assert_close(tower.project(tower.features(inputs)), tower.encode(inputs))


def test_the_tokenizer_travels_without_the_weights() -> None:
    tower = assemble("text", spec(**TEXT))
    packed = pickle.dumps(tower.input)
    assert b"resblocks" not in packed
    assert pickle.loads(packed)(["a dog"])["input_ids"].equal(tower.input(["a dog"])["input_ids"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "has no source of weights"),
        ({**TEXT, "run": "runs/a"}, "has builder and run"),
        (
            {**TEXT, "modle": "RN50"},
            r"builder 'openclip': modle: unknown key\. Did you mean 'model'\?",
        ),
        ({"builder": "opencilp"}, r"unknown builder 'opencilp'\. Did you mean 'openclip'\?"),
        ({"builder": "sbert"}, r"builder 'sbert': key 'model' is missing"),
        (
            {**TEXT, "head": {"name": "linear"}},
            "head 'linear' over width 32: .*key 'width' is missing",
        ),
        (
            {**TEXT, "head": {"name": "lineer", "width": 3}},
            r"unknown head 'lineer'\. Did you mean 'linear'\?",
        ),
        (
            {**TEXT, "pooler": {"name": "attention", "heads": 5}},
            "5 heads do not divide the token width 32",
        ),
        (
            {"builder": "pointnet", "modality": "mesh", "adapter": {"name": "lora"}},
            "builder 'pointnet' takes no `adapter`",
        ),
        ({"follows": "image"}, "has follows. Give exactly one of builder and run"),
        (
            {**TEXT, "freeze_batch_norm_stats": True},
            r"freeze_batch_norm_stats: has no effect: no batch norm is in the trained part",
        ),
    ],
)
def test_mismatches_are_named_with_their_remedy(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        assemble("text", spec(**keys))
    assert "\n" not in str(error.value)


def test_the_end_of_text_pooler_needs_a_marked_end() -> None:
    assemble("text", spec(**TEXT, pooler={"name": "eot"}))
    with pytest.raises(RecipeError, match="this model has no end-of-text token"):
        assemble("image", spec(**IMAGE, pooler={"name": "eot"}))


def test_class_and_patches_pool_a_vit_and_refuse_texts_and_convolutions() -> None:
    images = torch.randn(2, 3, 32, 32)
    vit = assemble("image", spec(**IMAGE, pooler={"name": "cls_mean"}))
    tokens = vit.encoder(images, tokens=True).tokens
    assert tokens is not None and tokens.prefix == 1
    pooled = torch.cat([tokens.values[:, 0], tokens.values[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(vit.encode(images), pooled)
    with pytest.raises(RecipeError, match="joins the class token and the patches of an image"):
        assemble("text", spec(**TEXT, pooler={"name": "cls_mean"}))
    resnet = {"builder": "torchvision", "model": "resnet18", "pooler": {"name": "cls_mean"}}
    with pytest.raises(RecipeError, match="'cls_mean' needs a class token"):
        assemble("image", spec(**resnet))


SIGLIP = {
    "builder": "huggingface",
    "modality": "image",
    "config": {"type": "siglip_vision_model", **VISION_TYPES["siglip_vision_model"]},
}


@pytest.mark.parametrize("keys", [SIGLIP, {"builder": "torchvision", "model": "resnet18"}])
def test_the_class_token_is_refused_where_an_image_has_none(keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="'cls' needs a class token, and this model has none"):
        assemble("image", spec(**keys, pooler={"name": "cls"}))


@pytest.mark.parametrize("name", ["mean", "max", "gem"])
def test_averages_and_maxima_of_an_image_leave_out_class_and_register_tokens(name: str) -> None:
    registers = {"type": "dinov2_with_registers", **VISION_TYPES["dinov2_with_registers"]}
    keys = {"builder": "huggingface", "modality": "image", "config": registers}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower = assemble("image", spec(**keys, pooler={"name": name})).eval()
    tokens = tower.encoder(images, tokens=True).tokens
    assert tokens is not None and tokens.prefix == 4 and tower.pooler is not None
    patches = tokens.values[:, 4:]
    expected = tower.pooler(patches, torch.ones(patches.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(tower.encode(images), expected)


def test_blocks_read_the_class_token_of_a_vit() -> None:
    images = torch.randn(2, 3, 32, 32)
    keys = {"name": "blocks", "reads": "tokens", "heads": 2, "width": 6}
    vit = assemble("image", spec(**IMAGE, train="head", head=keys)).eval()
    tokens = vit.encoder(images, tokens=True).tokens
    assert tokens is not None
    expected = vit.head(tokens.values[:, 1:], prefix=tokens.values[:, :1])
    torch.testing.assert_close(vit.encode(images), expected)
    # Pictures of a view: each sample's tokens stay its own.
    views = torch.stack([images, images.flip(3)], dim=1).flatten(0, 1)
    second = vit(views, {"head": (2,)}, pictures=2)["head"]
    torch.testing.assert_close(second, vit.encode(images.flip(3)))


@pytest.mark.parametrize(
    ("keys", "class_token", "line"),
    [
        (SIGLIP, "model", "head 'blocks' needs a class token, and the tower's model has none"),
        (IMAGE, "mean", "class_token: mean is for models without a class token"),
    ],
)
def test_blocks_and_tokens_that_do_not_fit_are_refused_at_build(
    keys: dict[str, Any], class_token: str, line: str
) -> None:
    head = {"name": "blocks", "reads": "tokens", "heads": 2, "class_token": class_token}
    with pytest.raises(RecipeError, match=f"^tower 'image': .*{line}"):
        assemble("image", spec(**keys, train="head", head=head))


def saved_run(
    folder: Path,
    towers: dict[str, dict[str, Any]],
    *,
    seed: int = 0,
    is_best: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """A run folder with a checkpoint of freshly initialized towers."""
    torch.manual_seed(seed)
    built = {name: assemble(name, spec(**keys)) for name, keys in towers.items()}
    state = {name: tower.trainable_state() for name, tower in built.items()}
    keys = {"step": 1, "world_size": 1, "global_batch": 1, **fields}
    checkpoint = Checkpoint(recipe=json.dumps({"towers": towers}), towers=state, **keys)
    checkpoint.save(folder / "checkpoints", is_best=is_best)
    return built


def test_a_trained_tower_comes_out_of_a_run(tmp_path: Path) -> None:
    built = saved_run(
        tmp_path, {"image": {**IMAGE, "head": {"name": "linear", "width": 4}}, "text": TEXT}
    )
    loaded = assemble("teacher_image", spec(run=str(tmp_path), train="none"))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.encode(images), built["image"].encode(images))
    assert loaded.is_frozen and loaded.name == "teacher_image"
    assert assemble("teacher", spec(run=str(tmp_path), tower="text")).modality == "text"


def test_a_tower_of_a_run_is_that_of_its_best_checkpoint_with_averaged_weights(
    tmp_path: Path,
) -> None:
    best = saved_run(tmp_path, {"text": TEXT}, seed=1, is_best=True)["text"]
    average = {f"towers.text.{name}": value + 1 for name, value in best.named_parameters()}
    saved_run(tmp_path, {"text": TEXT}, seed=1, is_best=True, step=4, ema=average)
    last = saved_run(tmp_path, {"text": TEXT}, seed=2, step=5)["text"]

    taken = assemble("text", spec(run=str(tmp_path)))
    for name, parameter in taken.named_parameters():
        assert parameter.equal(average[f"towers.text.{name}"])
    assert taken.source == Source(
        tmp_path.name, str(tmp_path / "checkpoints" / "best.pt"), 4, averaged=True
    )
    asked = assemble("text", spec(run=str(tmp_path), checkpoint="last"))
    for name, parameter in asked.named_parameters():
        assert parameter.equal(last.get_parameter(name))
    assert asked.source is not None and asked.source.step == 5


def test_a_checkpoint_that_lacks_a_trained_tower_is_refused(tmp_path: Path) -> None:
    saved_run(tmp_path, {"text": TEXT})
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    del state["towers"]["text"]
    torch.save(state, tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(CheckpointError, match="holds no trained tower 'text'. It holds: none"):
        assemble("text", spec(run=str(tmp_path)))


def test_a_tower_that_was_frozen_in_its_run_comes_from_its_builder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "text.pt"
    torch.save(assemble("text", spec(**TEXT)).encoder.encoder.state_dict(), weights)
    keys = {**TEXT, "pretrained": str(weights), "train": "none"}
    built = saved_run(tmp_path / "run", {"image": IMAGE, "text": keys})
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    del state["towers"]["text"]
    torch.save(state, tmp_path / "run" / "checkpoints" / "last.pt")
    loaded = assemble("text", spec(run=str(tmp_path / "run")))
    inputs = loaded.input(["a dog"])
    torch.testing.assert_close(loaded.eval().encode(inputs), built["text"].encode(inputs))
    assert not loaded.is_frozen


def test_a_follower_of_a_run_comes_with_its_own_weights_and_the_heads_that_were_read(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    heads = {name: {"name": "linear", "width": 4} for name in ("project", "other")}
    image = assemble("image", spec(**IMAGE, heads=heads))
    follower = MomentumTower(image, follows="image", outputs=["project"])
    with torch.no_grad():
        for parameter in follower.parameters():
            parameter.add_(1)
    towers = {"image": {**IMAGE, "heads": heads}, "image_slow": {"follows": "image"}}
    state = {f"image_slow.{name}": value for name, value in follower.state_dict().items()}
    Checkpoint(
        recipe=json.dumps({"towers": towers}),
        towers={"image": image.trainable_state()},
        followers=state,
        step=1,
        world_size=1,
        global_batch=1,
    ).save(tmp_path / "checkpoints")
    taken = assemble("image", spec(run=str(tmp_path), tower="image_slow"))
    assert list(taken.graph.links) == ["project"]
    images = torch.rand(2, 3, 32, 32)
    theirs = follower.tower.eval()(images, ("project", "backbone"))
    ours = taken.eval()(images, ("project", "backbone"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_a_tower_of_a_run_brings_the_heads_that_are_read_and_takes_new_ones(tmp_path: Path) -> None:
    heads = {
        "project": {"name": "linear", "width": 4},
        "predict": {"name": "linear", "width": 3, "reads": "project"},
        "unread": {"name": "linear", "width": 2},
    }
    built = saved_run(tmp_path, {"image": {**IMAGE, "heads": heads}})["image"]
    new = {"final": {"name": "linear", "width": 5, "reads": "predict"}}
    taken = assemble("image", spec(run=str(tmp_path), heads=new), outputs=["final"])
    assert list(taken.graph.links) == ["project", "predict", "final"]
    assert taken.heads.predict.linear.weight.equal(built.heads.predict.linear.weight)
    replaced = assemble(
        "image", spec(run=str(tmp_path), heads={"predict": new["final"] | {"reads": "project"}})
    )
    assert replaced.width_of("predict") == 5 and set(replaced.graph.links) == set(heads)


def test_a_run_without_the_tower_or_the_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tower 'image': .* holds no checkpoint"):
        assemble("image", spec(run=str(tmp_path)))
    saved_run(tmp_path, {"image": IMAGE})
    with pytest.raises(RecipeError, match=r"has no tower 'imag'\. Did you mean 'image'\?"):
        assemble("image", spec(run=str(tmp_path), tower="imag"))
    with pytest.raises(RecipeError, match=r"holds 0 text towers"):
        assemble("text", spec(run=str(tmp_path)))
    with pytest.raises(RecipeError, match="as it was trained; remove pooler"):
        assemble("image", spec(run=str(tmp_path), pooler={"name": "mean"}))
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="tower 'image': .* damaged or not a checkpoint"):
        assemble("image", spec(run=str(tmp_path)))


def test_a_checkpoint_of_another_size_names_the_first_difference(tmp_path: Path) -> None:
    saved_run(tmp_path, {"image": IMAGE})
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    state["recipe"] = json.dumps(
        {"towers": {"image": {**IMAGE, "config": {**IMAGE["config"], "width": 64}}}}
    )
    torch.save(state, tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(
        CheckpointError,
        match=(
            r"'backbone\.encoder\.class_embedding' is \[32\] in it and \[64\] in the recipe's tower"
        ),
    ):
        assemble("image", spec(run=str(tmp_path)))
