"""A student's weights taken from its teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.golden import golden_inputs
from tests.support.recipes import problems
from tests.support.vision_types import VISION_TYPES
from tests.unit.engine.recipes import IMAGE, TEXT
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.towers.cut import Fit, by_pieces, leading, parts_of, placed, splits
from vlkd_cli.towers.inherit import _chosen_blocks, _head_widths, _renamed, choose_layers
from vlkd_cli.towers.tower import Tower

GOLDENS = Path(golden_inputs.__file__).parent / "distil_adapt.json"
CASES = [
    case
    for case in json.loads(GOLDENS.read_text(encoding="utf-8"))["cases"]
    if case["kind"] == "inherit"
]
ANY = Fit(True, None)
HF = ("dinov2_with_registers", "swin")
HF_TEXT = {"builder": "huggingface", "tokenizer": "trained"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_layers_and_channels_are_those_of_tinyclip(case: dict[str, Any]) -> None:
    hyper, expected = case["hyper"], case["expected"]
    rule = hyper["layers"] if isinstance(hyper["layers"], str) else f"every {hyper['layers']}"
    layers = choose_layers(hyper["student"]["layers"], hyper["teacher"]["layers"], rule)
    assert layers == expected["teacher_layers"]
    for name, values in golden_inputs.build(case).items():
        shape = expected["tensors"][name]["shape"][1:]
        parts = 3 if name.startswith("in_proj") else 1
        found = torch.stack([leading(torch.tensor(values[n]), shape, parts) for n in layers])
        found = found.double()
        assert list(found.shape) == expected["tensors"][name]["shape"]
        assert found.sum().item() == pytest.approx(expected["tensors"][name]["sum"], rel=1e-9)
        assert found.square().sum().item() == pytest.approx(
            expected["tensors"][name]["sumsq"], rel=1e-9
        )
        assert found.flatten()[:3].tolist() == pytest.approx(expected["tensors"][name]["head"])
        assert found.flatten()[-1].item() == pytest.approx(expected["tensors"][name]["last"])


def towers(student: dict[str, Any], teacher: dict[str, Any], init: dict[str, Any]) -> list[Tower]:
    sections = {
        "student_image": {**student, "init": {"from": "teacher_image", **init}},
        "teacher_image": {**teacher, "train": "none"},
    }
    if "image_size" not in {*student, *student.get("config", ["image_size"])}:
        sections = {name.replace("image", "text"): own for name, own in sections.items()}
        own = next(iter(sections.values()))
        own["init"]["from"] = "teacher_text"
    built = build_towers(
        parse_recipe(json.dumps({"towers": sections}), "r.yaml"),
        captions=lambda: ["a red disc", "a blue square"],
        run_folder=None,
        cache_dir=None,
    )
    return [tower for tower in built.values() if isinstance(tower, Tower)]


def sized(section: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {**section, "config": {**section["config"], **config}}


@pytest.mark.parametrize(
    "section",
    [
        sized(IMAGE, layers=2),
        sized(TEXT, layers=2),
        {
            "builder": "timm",
            "model": "vit_tiny_patch16_224",
            "image_size": 32,
            "config": {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8},
        },
        {**HF_TEXT, "config": {"layers": 2, "width": 16, "heads": 2}},
        *(
            {"builder": "huggingface", "config": {"type": kind, **VISION_TYPES[kind]}}
            for kind in HF
        ),
    ],
    ids=["openclip image", "openclip text", "timm", "huggingface text", *HF],
)
def test_a_student_of_its_teacher_s_size_has_its_features(section: dict[str, Any]) -> None:
    if section["builder"] == "timm":
        section = {**section, "image_size": 32}
        built = build_towers(
            parse_recipe(
                json.dumps(
                    {
                        "towers": {
                            "student_image": {**section, "init": {"from": "teacher_image"}},
                            "teacher_image": {**section, "train": "none"},
                        }
                    }
                ),
                "r.yaml",
            ),
            captions=None,
            run_folder=None,
            cache_dir=None,
        )
        student, teacher = built.values()
    else:
        student, teacher = towers(section, section, {})
    if teacher.modality == "image":
        inputs: Any = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    else:
        inputs = teacher.input(["a red disc", "a blue square"])
    student.eval()
    with torch.no_grad():
        assert student.features(inputs).equal(teacher.features(inputs))
    assert str(student.inherited).endswith("100.0% of its parameters")


def test_every_second_block_and_the_leading_heads_are_taken() -> None:
    student, teacher = towers(
        sized(IMAGE, layers=2, width=16, heads=2, patch_size=16),
        sized(IMAGE, layers=4, width=32, heads=4, patch_size=8),
        {"layers": "every 2"},
    )
    ours, theirs = student.encoder.state_dict(), teacher.encoder.state_dict()
    block = "encoder.transformer.resblocks.{}.attn.in_proj_weight"
    big = theirs[block.format(2)]
    expected = torch.cat([part[:16, :16] for part in big.chunk(3)])
    assert ours[block.format(1)].equal(expected)
    kernel, patch = ours["encoder.conv1.weight"], theirs["encoder.conv1.weight"]
    torch.testing.assert_close(kernel.sum((2, 3)), patch[:16].sum((2, 3)), rtol=0.1, atol=0.05)
    assert str(student.inherited) == (
        "inherits from 'teacher_image': layers 0, 2, 100.0% of its parameters"
    )


def test_joined_weights_give_the_leading_part_of_each_whatever_a_library_calls_them() -> None:
    config = {"type": "modernbert", "layers": 1, "heads": 4, "width": 32, "hidden": 48}
    section = {**HF_TEXT, "config": config}
    student, teacher = towers(sized(section, heads=2, width=16, hidden=24), section, {})
    ours, theirs = student.encoder.state_dict(), teacher.encoder.state_dict()
    for name, count, rows in (("attn.Wqkv", 3, 16), ("mlp.Wi", 2, 24)):
        key = f"encoder.layers.0.{name}.weight"
        parts = theirs[key].chunk(count)
        assert ours[key].equal(torch.cat([part[:rows, :16] for part in parts]))
    packed = {"b.fc1.weight": torch.zeros(8, 3), "b.fc2.weight": torch.zeros(3, 4)}
    assert parts_of("b.fc1.weight", packed) == 2
    assert parts_of("b.fc1.weight", {**packed, "b.fc2.weight": torch.zeros(3, 8)}) == 1
    assert parts_of("attn_pool.kv.weight", {}) == 2


def test_an_image_tower_of_hugging_face_takes_blocks_heads_and_a_smaller_grid() -> None:
    small = {**VISION_TYPES["dinov2"], "type": "dinov2"}
    large = {**small, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}
    hugging_face = {"builder": "huggingface"}
    student, teacher = towers(
        {**hugging_face, "config": small},
        {**hugging_face, "config": {**large, "image_size": 64}},
        {"layers": [1, 3]},
    )
    ours, theirs = student.encoder.state_dict(), teacher.encoder.state_dict()
    for name, tensor in ours.items():
        there = name.replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        if "position_embeddings" not in name:
            assert tensor.equal(theirs[there][tuple(map(slice, tensor.shape))]), name
    positions = [name for name in ours if name.endswith("position_embeddings")]
    assert [(ours[name].shape[1], theirs[name].shape[1]) for name in positions] == [(17, 65)]
    assert ours[positions[0]][:, 0].equal(theirs[positions[0]][:, 0, :16])


@pytest.mark.parametrize(
    ("layers", "taken"), [("even", [0, 2]), ("first", [0, 1]), ("last", [2, 3]), ([3, 1], [3, 1])]
)
def test_a_choice_is_of_the_blocks_of_the_stages_that_are_shorter(
    layers: str | list[int], taken: list[int]
) -> None:
    config = {"type": "swin", **VISION_TYPES["swin"], "depths": [1, 2]}
    section = {"builder": "huggingface", "config": config}
    student, teacher = towers(section, sized(section, depths=[1, 4]), {"layers": layers})
    ours, theirs = student.encoder.state_dict(), teacher.encoder.state_dict()
    block = "encoder.encoder.layers.1.blocks."
    # Matrices, whose numbers are random; transformers 5 has other names for them.
    first = {name for name in ours if name.startswith(f"{block}0.") and ours[name].ndim == 2}
    for own, there in enumerate(taken):
        for name in first:
            source = theirs[name.replace(f"{block}0.", f"{block}{there}.")]
            assert ours[name.replace(f"{block}0.", f"{block}{own}.")].equal(source)
    assert len(first) > 5
    with pytest.raises(RecipeError, match=r"several of its stages are longer.*Write even, first"):
        towers(section, sized(section, depths=[2, 3]), {"layers": [0]})


def test_blocks_of_torchvision_are_numbered_behind_a_word() -> None:
    names = [f"encoder.layers.encoder_layer_{number}.ln_1.weight" for number in range(4)]
    chosen = _chosen_blocks(names[:2], names, "last", "")
    assert chosen == {"encoder.layers.encoder_layer": [2, 3]}
    assert [_renamed(name, chosen) for name in names[:2]] == names[2:]


def test_queries_of_heads_that_lie_next_to_their_keys_are_taken_head_by_head() -> None:
    from timm.models.tiny_vit import Attention

    def attention(heads: int) -> nn.ModuleDict:
        return nn.ModuleDict({"attn": Attention(8, 2, num_heads=heads, attn_ratio=3)})

    assert _head_widths(attention(3)) == {2}
    here, there = splits(attention(1)), splits(attention(3))
    assert (here["attn.qkv.weight"], there["attn.qkv.weight"]) == ([10], [30])
    rows = torch.arange(30.0)[:, None]
    assert by_pieces(rows, (10, 1), [30], [10]).flatten().tolist() == list(range(10))  # type: ignore[union-attr]
    joined = by_pieces(rows, (6, 1), [10, 10, 10], [2, 2, 2])
    assert joined is not None and joined.flatten().tolist() == [0, 1, 10, 11, 20, 21]
    assert by_pieces(rows, (10, 1), [], []) is None


def test_parallel_blocks_give_the_leading_part_of_mlp_queries_keys_and_values() -> None:
    def section(depth: int, width: int) -> dict[str, Any]:
        config = {"depth": depth, "embed_dim": width, "num_heads": width // 8, "patch_size": 8}
        return {
            "builder": "timm",
            "model": "vit_base_patch16_xp_224",
            "image_size": 32,
            "config": config,
        }

    student, teacher = towers(section(2, 16), section(4, 32), {})
    ours, theirs = student.encoder.state_dict(), teacher.encoder.state_dict()
    for own, there in ((0, 0), (1, 2)):
        big = theirs[f"encoder.blocks.{there}.in_proj.weight"]
        # Timm computes the MLP and attention of a parallel block from one matrix.
        mlp, q, k, v = big.split([128, 32, 32, 32])
        expected = torch.cat([mlp[:64, :16], q[:16, :16], k[:16, :16], v[:16, :16]])
        assert ours[f"encoder.blocks.{own}.in_proj.weight"].equal(expected)
        bias = theirs[f"encoder.blocks.{there}.mlp_bias"]
        assert ours[f"encoder.blocks.{own}.mlp_bias"].equal(bias[:64])
    with pytest.raises(RecipeError, match="heads are 8 channels wide and the student's 16"):
        wide = section(2, 16)
        towers({**wide, "config": {**wide["config"], "num_heads": 1}}, section(4, 32), {})


def test_biases_of_distances_are_resized_to_another_window() -> None:
    name = "blocks.0.attn.relative_position_bias_table"
    slope = torch.arange(13.0).expand(13, 13)
    table = torch.stack([slope, slope.T], dim=-1).flatten(0, 1)
    found = placed(name, torch.cat([table, torch.full((3, 2), 9.0)]), torch.zeros(52, 1), ANY, 1)
    assert found is not None and found[49:].flatten().tolist() == [9.0, 9.0, 9.0]
    grid = found[:49].view(7, 7)
    assert grid.std(0).max() < 1e-4 and bool((grid[0].diff() > 0).all())
    torch.testing.assert_close(grid[0, 3], torch.tensor(6.0))
    assert placed(name, table, torch.zeros(48, 2), ANY, 1) is None
    assert placed("attn.attention_biases", torch.zeros(2, 16), torch.zeros(2, 9), ANY, 1) is None


def test_positions_of_a_grid_that_is_not_square_are_resized_along_its_sides() -> None:
    columns = torch.arange(8.0).expand(4, 8).reshape(1, 32, 1)
    there = torch.cat([torch.tensor([[[-1.0], [-2.0]]]), columns], dim=1)
    fit = Fit(True, None, (Grid(4, 8, 8), Grid(2, 4, 16)))
    found = placed("encoder.pos_embed", there, torch.zeros(1, 10, 1), fit, 1)
    assert found is not None and found[0, :2].flatten().tolist() == [-1.0, -2.0]
    grid = found[0, 2:].view(2, 4)
    torch.testing.assert_close(grid[0], grid[1])
    assert bool((grid[0].diff() > 1.5).all())
    # As many positions on another grid.
    turned = fit._replace(grids=(Grid(4, 8, 8), Grid(8, 4, 8)))
    found = placed("encoder.pos_embed", there, torch.zeros(1, 34, 1), turned, 1)
    assert found is not None and bool((found[0, 2:].view(8, 4).diff() > 1.5).all())


def test_a_linear_map_of_patches_answers_smaller_ones_as_before() -> None:
    pixels = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    small, large = (pixels.repeat_interleave(n, 1).repeat_interleave(n, 2) for n in (2, 4))
    kernel = torch.ones(1, 3, 8, 8) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    there = kernel.permute(0, 2, 3, 1).flatten(1)
    name = "encoder.embeddings.patch_embedding.weight"
    found = placed(name, there, torch.zeros(1, 48), Fit(True, None), 1)
    assert found is not None
    torch.testing.assert_close(
        found @ small.permute(1, 2, 0).flatten(), there @ large.permute(1, 2, 0).flatten()
    )


def test_a_smaller_vocabulary_takes_the_rows_of_its_tokens() -> None:
    student, teacher = towers(sized(TEXT, vocab_size=1000), sized(TEXT, vocab_size=2000), {})
    ours, theirs = (
        tower.encoder.state_dict()["encoder.token_embedding.weight"] for tower in (student, teacher)
    )
    assert ours[:998].equal(theirs[:998])
    assert ours[998:].equal(theirs[1998:])  # start and end of a text


@pytest.mark.parametrize(
    ("teacher", "init", "expected"),
    [
        (sized(IMAGE, layers=1), {}, "has 1 layers for 2"),
        (sized(IMAGE, layers=4, width=8, heads=1), {}, "A student inherits from a teacher that is"),
        (sized(IMAGE, layers=4, width=32, heads=2), {}, "its attention heads are 16 channels wide"),
        (sized(IMAGE, layers=4), {"layers": "every 3"}, None),
        (sized(IMAGE, layers=3), {"layers": "every 3"}, "gives 1 layers for 2"),
        (sized(IMAGE, layers=4), {"layers": [1, 4]}, "has 4 layers, numbered from 0"),
        (sized(IMAGE, layers=4), {"layers": [1]}, "gives 1 layers for 2"),
    ],
)
def test_what_cannot_be_inherited_is_one_line(
    teacher: dict[str, Any], init: dict[str, Any], expected: str | None
) -> None:
    student = sized(IMAGE, layers=2)
    if expected is None:
        assert towers(student, teacher, init)
        return
    with pytest.raises(RecipeError) as caught:
        towers(student, teacher, init)
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1


RECIPE = """\
towers:
  image: {builder: torchvision, model: resnet18, init: {from: teacher_image}}
  text: {builder: openclip, config: {layers: 2, width: 64, heads: 2}}
  teacher_image: {builder: torchvision, model: resnet18, train: none}
distillers:
  - {name: infonce, student: image, teacher: text}
  - {name: simreg, student: image, teacher: teacher_image}
data: {reader: shapes}
"""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("towers.image.init={from: teacher_imag}", "no other tower 'teacher_imag'. Did you mean"),
        ("towers.image.init={from: image}", "no other tower 'image'"),
        ("towers.image.init={from: text}", "'text' takes texts, and this tower takes images"),
        (
            "towers.teacher_image.builder=timm",
            "is of builder 'timm', and this one of 'torchvision'",
        ),
        ("towers.image.pretrained=true", "has no effect: init replaces these weights"),
        ("towers.image.adapter={name: lora}", "init and adapter cannot be combined"),
        (
            "towers.image.init={from: teacher_image, layers: every 0}",
            "expected a mapping with from",
        ),
        ("towers.image.init={from: teacher_image, layers: odd}", "expected a mapping with from"),
        ("towers.image.train=none", "would be a smaller copy that nothing trains"),
    ],
)
def test_an_init_without_meaning_is_one_line(override: str, expected: str) -> None:
    assert problems(RECIPE) == []
    assert any(expected in line for line in problems(RECIPE, [override])), problems(
        RECIPE, [override]
    )
