"""Adapters in towers of every builder: what moves, what is saved, and what an export holds."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.golden import golden_inputs
from tests.support.encoders import write_encoder
from tests.support.vision_types import VISION_TYPES
from vlkd_cli.builders.adapters.any_tower import _attach_changes, merged
from vlkd_cli.builders.adapters.changes import Decomposed, Factors, LowRank
from vlkd_cli.builders.adapters.methods.low_rank import LoRA
from vlkd_cli.builders.adapters.targets import find_parts
from vlkd_cli.builders.adapters.vpt import Prompts
from vlkd_cli.builders.openclip.blocks import PackedAttention
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.export import export_tower
from vlkd_cli.towers.tower import Tower

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL_VIT = {"layers": 3, "width": 32, "heads": 2, "image_size": 32, "patch_size": 16}
TOWERS: dict[str, dict[str, Any]] = {
    "open_clip ViT": {"builder": "openclip", "config": SMALL_VIT},
    "open_clip text": {
        "builder": "openclip",
        "modality": "text",
        "config": {"layers": 2, "width": 32, "heads": 2, "context_length": 16, "vocab_size": 600},
    },
    "timm ViT": {"builder": "timm", "model": "test_vit", "image_size": 64},
    "timm BEiT": {
        "builder": "timm",
        "model": "beit_base_patch16_224",
        "image_size": 32,
        "config": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "timm Swin": {
        "builder": "timm",
        "model": "swin_tiny_patch4_window7_224",
        "image_size": 32,
        "config": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    },
    "timm ConvNeXt": {"builder": "timm", "model": "test_convnext", "image_size": 64},
    "timm ResNet": {
        "builder": "timm",
        "model": "test_resnet",
        "image_size": 64,
        # Else the branches of a fresh network add nothing, and nothing in them has a gradient.
        "config": {"zero_init_last": False},
    },
    "torchvision ResNet": {"builder": "torchvision", "model": "resnet18", "image_size": 32},
    "HF ViT": {"builder": "huggingface", "config": {"type": "vit", **VISION_TYPES["vit"]}},
    "HF Swin": {"builder": "huggingface", "config": {"type": "swin", **VISION_TYPES["swin"]}},
    "HF ConvNeXt": {
        "builder": "huggingface",
        "config": {"type": "convnext", **VISION_TYPES["convnext"]},
    },
    "sentence encoder": {"builder": "sbert", "modality": "text", "model": "see the fixture"},
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 2, "alpha": 4},
    "dora": {"name": "dora", "rank": 2, "alpha": 4},
    "ia3": {"name": "ia3"},
    "vera": {"name": "vera", "rank": 4},
}
CONVOLUTIONAL = ("timm ResNet", "torchvision ResNet")
VITS = ("open_clip ViT", "timm ViT", "HF ViT")
QUICK = ("open_clip ViT", "open_clip text", "timm ViT", "timm BEiT", "HF ConvNeXt")
CASES = [
    pytest.param(
        kind,
        method,
        id=f"{kind} {method}",
        marks=() if kind in QUICK or method == "lora" else pytest.mark.slow,
    )
    for kind in TOWERS
    for method in METHODS
    if not (method == "vera" and kind in CONVOLUTIONAL)
]


@pytest.fixture(scope="module", autouse=True)
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sentence encoder with mean pooling, a linear layer and normalization."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Normalize,
        Pooling,
        Transformer,
    )

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    first = Transformer(str(write_encoder(folder / "bert")), max_seq_length=32)
    modules = [first, Pooling(64, "mean"), Dense(64, 32), Normalize()]
    whole = SentenceTransformer(modules=modules, device="cpu")
    whole.save(str(folder / "whole"), create_model_card=False)
    TOWERS["sentence encoder"]["model"] = str(folder / "whole")
    return folder / "whole"


def build(kind: str, adapter: dict[str, Any] | None, seed: int = 0, **keys: Any) -> Tower:
    torch.manual_seed(seed)
    section = {"modality": "image", **TOWERS[kind], **keys}
    if adapter is not None:
        section["adapter"] = adapter
    return assemble("t", TowerSpec.model_validate(section))


def inputs_of(tower: Tower, count: int = 4) -> Any:
    if tower.modality == "text":
        return tower.input(["a red square", "two dogs on a car", "a", "one"][:count])
    shape = (count, 3, *tower.input.size_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def step(tower: Tower, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> None:
    learned = [each for each in tower.train().parameters() if each.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(learned, lr=0.05, weight_decay=0.1)
    torch.manual_seed(seed)
    features = tower.encode(inputs_of(tower))
    (features * torch.arange(features.shape[1])).sin().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def same(first: dict[str, Tensor], second: dict[str, Tensor], names: Any) -> bool:
    return all(torch.equal(first[name], second[name]) for name in names)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_step_moves_the_adapter_and_nothing_else(kind: str, method: str, tmp_path: Path) -> None:
    plain = build(kind, None).eval()
    tower = build(kind, METHODS[method], head={"name": "linear", "width": 4}).eval()
    inputs = inputs_of(plain)
    with torch.no_grad():
        torch.testing.assert_close(
            tower.features(inputs), plain.features(inputs), rtol=0, atol=1e-6
        )
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    saved = set(tower.trainable_state())
    for number in range(3):
        step(tower, seed=number)
    after = tower.state_dict()
    learned = {name for name, each in tower.named_parameters() if each.requires_grad}
    assert all("vlkd_" in name or "head." in name for name in learned)
    assert all("vlkd_fixed" in name for name in saved - learned)
    assert same(before, after, set(after) - learned), "a frozen weight or statistic moved"
    moved = [name for name in learned if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(learned)
    # Read by anyone who evaluates it, alone or in a batch.
    tower.eval()
    with torch.no_grad():
        together = tower.features(inputs_of(tower))
        alone = torch.cat([tower.features(inputs_of(tower, n))[-1:] for n in (1, 2, 3, 4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6 * together.abs().max().item())
    state = {name: tensor.clone() for name, tensor in tower.trainable_state().items()}
    other = build(kind, METHODS[method], head={"name": "linear", "width": 4}).eval()
    other.load_trainable_state(state)
    assert torch.equal(other.encode(inputs), tower.encode(inputs))
    assert other.digest() == tower.digest()
    exported = merged(tower.encoder).eval()
    assert set(exported.state_dict()) == set(plain.encoder.state_dict())
    with torch.no_grad():
        found = copy.deepcopy(exported)(inputs).feature
    torch.testing.assert_close(found, tower.features(inputs), rtol=0, atol=1e-5)
    assert torch.equal(other.encode(inputs), tower.encode(inputs))
    written = export_tower(tower, tmp_path, tmp_path)
    assert written.how.adapter == "merged"


def test_the_library_alone_reads_a_sentence_encoder_whose_adapter_was_merged(
    sentence_encoder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    tower = build("sentence encoder", {"name": "lora", "rank": 4, "last": 1})
    step(tower)
    texts = ["a red cat", "two dogs on a mat", "a"]
    with torch.no_grad():
        own = tower.eval().features(tower.input(texts))
    export_tower(tower, tmp_path, tmp_path)
    read, plain = (
        SentenceTransformer(str(folder), device="cpu") for folder in (tmp_path, sentence_encoder)
    )
    torch.testing.assert_close(read.encode(texts, convert_to_tensor=True), own, rtol=0, atol=1e-5)
    after, before = read.state_dict(), plain.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert set(after) == set(before)
    assert len(changed) == 4 and all(".layer.1.attention." in name for name in changed)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, method) for kind in VITS for method in [*METHODS, "vpt"]),
        ("sentence encoder", "lora"),
    ],
)
def test_resumed_training_equals_uninterrupted_training(kind: str, method: str) -> None:
    adapter = METHODS.get(method, {"name": "vpt", "tokens": 2})
    whole, parts = build(kind, adapter), build(kind, adapter)
    optimizers = []
    for tower in (whole, parts):
        learned = [each for each in tower.parameters() if each.requires_grad]
        optimizers.append(torch.optim.AdamW(learned, lr=0.01))
    for number in range(4):
        step(whole, optimizers[0], seed=number)
    for number in range(2):
        step(parts, optimizers[1], seed=number)
    resumed = build(kind, adapter)
    resumed.load_trainable_state(copy.deepcopy(parts.trainable_state()))
    learned = [each for each in resumed.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.01)
    optimizer.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for number in (2, 3):
        step(resumed, optimizer, seed=number)
    assert same(whole.state_dict(), resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("case", ["bidirectional", "causal"])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_with_lora_equals_the_golden(case: str, packed: bool) -> None:
    golden = json.loads((Path(golden_inputs.__file__).parent / "distil_adapt.json").read_text())
    (found,) = [each for each in golden["cases"] if each["id"] == f"lora_attention/{case}"]
    hyper, expected = found["hyper"], found["expected"]
    given = {
        name: torch.from_numpy(value).double() for name, value in golden_inputs.build(found).items()
    }
    width, heads = given["x"].shape[2], hyper["heads"]
    attention = nn.MultiheadAttention(width, heads, batch_first=True).double()
    if packed:
        attention.__class__ = PackedAttention
    with torch.no_grad():
        for name, value in given.items():
            if name.endswith(("weight", "bias")):
                attention.get_parameter(name.replace("out_proj_", "out_proj.")).copy_(value)
    scale = hyper["alpha"] / hyper["rank"]
    for module, tensor, name in (
        (attention, "in_proj_weight", "in"),
        (attention.out_proj, "weight", "out"),
    ):
        change = LowRank(getattr(module, tensor), None, rank=hyper["rank"], scale=scale)
        change.vlkd_a.data, change.vlkd_b.data = given[f"{name}_a"], given[f"{name}_b"]
        nn.utils.parametrize.register_parametrization(module, tensor, change)
    length = given["x"].shape[1]
    mask = torch.full((length, length), -torch.inf).double().triu(1) if hyper["causal"] else None
    y = attention(given["x"], given["x"], given["x"], attn_mask=mask, need_weights=False)[0]
    for key, tensor in (
        ("y", y),
        ("merged_in_proj", attention.in_proj_weight),
        ("merged_out_proj", attention.out_proj.weight),
    ):
        numbers = expected[key]
        assert float(tensor.sum()) == pytest.approx(numbers["sum"], rel=1e-9, abs=1e-9)
        assert float(tensor.square().sum()) == pytest.approx(numbers["sumsq"], rel=1e-9)
        if "head" in numbers:
            head = tensor.flatten()[: len(numbers["head"])].tolist()
            assert head == pytest.approx(numbers["head"], rel=1e-9)


def test_only_the_named_rows_of_a_fused_weight_change() -> None:
    tower = build("timm ViT", {"name": "lora", "rank": 2, "targets": ["q", "v"], "last": 1})
    for number in range(2):
        step(tower, seed=number)
    changed = merged(tower.encoder).state_dict()
    plain = build("timm ViT", None).encoder.state_dict()
    different = [name for name in plain if not torch.equal(plain[name], changed[name])]
    depth = max(int(name.split(".")[2]) for name in plain if ".blocks." in name)
    assert different == [f"encoder.blocks.{depth}.attn.qkv.weight"]
    shift = (changed[different[0]] - plain[different[0]]).abs().sum(1).view(3, -1)
    assert (shift[0] > 0).any() and (shift[1] == 0).all() and (shift[2] > 0).any()


def test_ia3_scales_outputs_with_their_bias_and_the_inputs_of_the_second_matrix() -> None:
    tower = build("timm ViT", {"name": "ia3"})
    network: Any = tower.encoder.encoder
    block = network.blocks[0]
    factors = block.attn.qkv.parametrizations.weight[0]
    with torch.no_grad():
        factors.vlkd_f.uniform_(0.5, 2.0)
        block.mlp.fc2.parametrizations.weight[0].vlkd_f.uniform_(0.5, 2.0)
    x = torch.randn(2, 5, block.attn.qkv.in_features)
    plain = build("timm ViT", None).encoder.encoder.blocks[0]  # type: ignore[union-attr,index]
    scale = factors.vlkd_f.clone()
    scale[: len(scale) // 3] = 1
    torch.testing.assert_close(block.attn.qkv(x), scale * plain.attn.qkv(x))
    hidden = torch.randn(2, 5, block.mlp.fc2.in_features)
    inner = block.mlp.fc2.parametrizations.weight[0].vlkd_f
    torch.testing.assert_close(block.mlp.fc2(hidden), plain.mlp.fc2(hidden * inner))


def test_dora_trains_the_direction_and_its_norm_has_no_gradient() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6, dtype=torch.float64)
    change = Decomposed(weight, None, rank=2, scale=2.0)
    torch.testing.assert_close(change(weight), weight)
    change.vlkd_b.data.normal_()
    change.vlkd_m.data.uniform_(1, 2)
    torch.testing.assert_close(change(weight).norm(dim=1), change.vlkd_m.data[:, 0])
    out = change(weight)
    upstream = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * upstream).sum(), change.vlkd_b)
    v = weight + 2.0 * change.vlkd_b @ change.vlkd_a
    ratio = change.vlkd_m / v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(grad, 2.0 * (ratio * upstream) @ change.vlkd_a.T)


def test_dropout_is_of_the_added_part_and_only_in_training() -> None:
    adapter = {"name": "lora", "rank": 2, "targets": ["up"], "dropout": 0.5}
    tower = build("timm ViT", adapter)
    network: Any = tower.encoder.encoder
    layer = network.blocks[0].mlp.fc1
    layer.parametrizations.weight[0].vlkd_b.data.normal_()
    x = torch.randn(3, layer.in_features)
    tower.train()
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(x, 0.5)
    change = layer.parametrizations.weight[0]
    base = layer.parametrizations.weight.original
    expected = x @ base.T + layer.bias + dropped @ change.added().T
    torch.testing.assert_close(found, expected)
    tower.eval()
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


def test_dropout_at_a_convolution_is_of_the_added_part() -> None:
    adapter = {"name": "lora", "rank": 2, "targets": ["conv"], "dropout": 0.5}
    tower = build("timm ResNet", adapter)
    network: Any = tower.encoder.encoder
    layer = network.layer2[0].conv2.double()
    change, base = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    change.vlkd_b.data.normal_()
    x = torch.randn(3, layer.in_channels, 7, 9, dtype=torch.float64)
    tower.train()
    layer.train()
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(x, 0.5)
    added = change.added().view_as(base)
    expected = [
        nn.functional.conv2d(each, weight, None, layer.stride, layer.padding)
        for each, weight in ((x, base), (dropped, added))
    ]
    torch.testing.assert_close(found, sum(expected))


def test_dropout_is_refused_where_the_added_part_cannot_be_separated() -> None:
    with pytest.raises(RecipeError, match="dropout: has no effect at '.*attn'"):
        build("open_clip ViT", {"name": "lora", "rank": 2, "dropout": 0.5})
    from timm.layers import Conv2dSame, StdConv2d

    for special in (StdConv2d(4, 4, 3), Conv2dSame(4, 4, 3, stride=2)):
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(special))
        _attach_changes(copy.deepcopy(network), LoRA(rank=2), None, "t")
        with pytest.raises(RecipeError, match=r"t: dropout: is not for '1\.0', a convolution that"):
            _attach_changes(network, LoRA(rank=2, dropout=0.5), None, "t")


@pytest.mark.parametrize(
    ("kind", "adapter", "line"),
    [
        ("timm ViT", {"name": "lora", "targets": ["nothing"]}, "'nothing' names nothing in this"),
        ("timm ViT", {"name": "lora", "targets": []}, "targets: is empty"),
        ("timm ViT", {"name": "lora", "rank": 999}, "rank: 999 is more than the 64 of"),
        ("timm ViT", {"name": "lora", "last": 99}, "last: 99: the backbone has"),
        ("timm ConvNeXt", {"name": "lora", "targets": ["conv_dw"]}, "depthwise convolution"),
        ("timm ResNet", {"name": "vera"}, "a convolution, which vera does not adapt"),
        ("timm Swin", {"name": "vpt"}, "is not for this network"),
        ("timm ResNet", {"name": "vpt"}, "is not for this network"),
        # Its attention has a bias for each pair of patches.
        ("timm BEiT", {"name": "vpt"}, "'vpt': is not for this network.*Choose adapter lora"),
        ("open_clip text", {"name": "vpt"}, "is for image towers"),
    ],
)
def test_what_cannot_act_is_refused_in_one_line(
    kind: str, adapter: dict[str, Any], line: str
) -> None:
    with pytest.raises(RecipeError, match=line) as error:
        build(kind, adapter)
    assert "\n" not in str(error.value) and str(error.value).startswith("tower 't'")


def test_a_network_whose_batch_norms_refuse_one_picture_in_training_is_refused_by_name() -> None:
    config = {"type": "levit", **VISION_TYPES["levit"]}
    section = {"builder": "huggingface", "modality": "image", "config": config}
    with pytest.raises(RecipeError, match="adapter 'vpt': is not for this network"):
        assemble("t", TowerSpec.model_validate({**section, "adapter": {"name": "vpt"}}))


def test_words_stand_for_layers_of_the_blocks_alone() -> None:
    tower = build("HF ViT", None)
    names = {part.module for part in find_parts(tower.encoder.encoder, None, None)}  # type: ignore[arg-type]
    assert len(names) == 8 and all(re.search(r"\blayers?\.\d", name) for name in names)
    siglip = {"type": "siglip_vision_model", **VISION_TYPES["siglip_vision_model"]}
    torch.manual_seed(0)
    other = assemble(
        "image", TowerSpec.model_validate({"builder": "huggingface", "config": siglip})
    )
    found = {part.module for part in find_parts(other.encoder.encoder, ["o"], None)}  # type: ignore[arg-type]
    assert len(found) == 2 and not any("head" in name for name in found)
    convolutions = find_parts(build("timm ResNet", None).encoder.encoder, None, None)  # type: ignore[arg-type]
    assert convolutions and not any(part.module.startswith("conv1") for part in convolutions)


def test_factors_of_a_convolution_scale_its_channels() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    plain = copy.deepcopy(convolution)
    change = Factors(convolution.weight, None)
    change.vlkd_f.data.uniform_(0.5, 2)
    nn.utils.parametrize.register_parametrization(convolution, "weight", change)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(convolution(x), change.vlkd_f.view(1, -1, 1, 1) * plain(x))


class GoldenBlock(nn.Module):
    """A block of the goldens' transformer."""

    def __init__(self, given: dict[str, Tensor], prefix: str, heads: int, eps: float) -> None:
        super().__init__()
        self.given, self.prefix, self.heads, self.eps = given, prefix, heads, eps

    def forward(self, x: Tensor) -> Tensor:
        get = {
            name.removeprefix(self.prefix): value
            for name, value in self.given.items()
            if name.startswith(self.prefix)
        }
        functional = nn.functional
        width = x.shape[-1]

        def norm(values: Tensor, name: str) -> Tensor:
            weight, bias = 1 + get[f"{name}_w"], get[f"{name}_b"]
            return functional.layer_norm(values, (width,), weight, bias, self.eps)

        packed = functional.linear(norm(x, "norm1"), get["qkv"], get["qkv_b"])
        q, k, v = packed.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + functional.linear(attended, get["proj"], get["proj_b"])
        hidden = functional.gelu(functional.linear(norm(x, "norm2"), get["fc1"], get["fc1_b"]))
        return x + functional.linear(hidden, get["fc2"], get["fc2_b"])


@pytest.mark.parametrize("case", ["shallow_cls", "deep_cls_registers", "deep_mean"])
def test_prompts_equal_the_golden(case: str) -> None:
    golden = json.loads((Path(golden_inputs.__file__).parent / "distil_adapt.json").read_text())
    (found,) = [each for each in golden["cases"] if each["id"] == f"vpt/{case}"]
    hyper = found["hyper"]
    given = {
        name: torch.from_numpy(value).double() for name, value in golden_inputs.build(found).items()
    }
    blocks: list[nn.Module] = [
        GoldenBlock(given, f"b{number}.", hyper["heads"], hyper["eps"])
        for number in range(hyper["depth"])
    ]
    depth, tokens, width = given["prompts"].shape
    prompts = Prompts(depth, tokens, width, 16, hyper["prefix_tokens"], 0.0).double()
    prompts.vectors.data = given["prompts"]
    prompts.attach(blocks)
    prefix = given["prefix"].expand(len(given["patches"]), -1, -1)
    x = torch.cat([prefix, given["patches"]], dim=1)
    for block in blocks:
        x = block(x)
    x = nn.functional.layer_norm(x, (width,), 1 + given["norm_w"], given["norm_b"], hyper["eps"])
    numbers = found["expected"]["tokens"]
    assert x.shape[1] == numbers["count"]
    assert float(x.sum()) == pytest.approx(numbers["sum"], rel=1e-9)
    assert float(x.square().sum()) == pytest.approx(numbers["sumsq"], rel=1e-9)
    feature = x[:, 0] if hyper["pool"] == "cls" else x[:, hyper["prefix_tokens"] :].mean(1)
    expected = torch.tensor(found["expected"]["feature"], dtype=torch.float64)
    torch.testing.assert_close(feature, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["open_clip ViT", "timm ViT", "HF ViT"])
@pytest.mark.parametrize("deep", [False, True])
def test_prompts_learn_alone_and_no_pooler_sees_them(kind: str, deep: bool, tmp_path: Path) -> None:
    adapter = {"name": "vpt", "tokens": 3, "deep": deep}
    tower = build(kind, adapter, pooler={"name": "mean"}).eval()
    plain = build(kind, None, pooler={"name": "mean"}).eval()
    inputs = inputs_of(tower)
    places = [each.encoder(inputs).tokens.values.shape for each in (tower, plain)]
    assert places[0] == places[1]
    # A feature alone is computed by a shorter way in some networks.
    features = [tower.encoder(inputs, tokens=tokens).feature for tokens in (False, True)]
    torch.testing.assert_close(features[0], features[1])
    assert not torch.equal(tower.encode(inputs), plain.encode(inputs))
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    assert set(tower.trainable_state()) == {"backbone.vlkd_prompts.vectors"}
    step(tower)
    after = tower.state_dict()
    assert same(before, after, set(after) - {"backbone.vlkd_prompts.vectors"})
    vectors = after["backbone.vlkd_prompts.vectors"]
    assert (vectors != before["backbone.vlkd_prompts.vectors"]).flatten(1).any(1).all()
    assert len(vectors) == (len(tower.encoder.layers()) - 1 if deep else 1) or kind != "timm ViT"
    tower.eval()
    alone = torch.cat([tower.encode(inputs[:n])[-1:] for n in (1, 2, 3, 4)])
    torch.testing.assert_close(tower.encode(inputs), alone, rtol=0, atol=1e-5)
    copied = copy.deepcopy(tower)
    assert torch.equal(copied.encode(inputs), tower.encode(inputs))
    with torch.no_grad():
        copied.encoder.vlkd_prompts.vectors.add_(1)  # type: ignore[union-attr,operator]
    assert not torch.equal(copied.encode(inputs), tower.encode(inputs))
    with pytest.raises(WeightsError, match="adapter 'vpt' is part of the computation"):
        export_tower(tower, tmp_path, tmp_path)


def test_factors_scale_a_bias_that_lies_next_to_its_fused_weight() -> None:
    plain = build("timm BEiT", None)
    tower = build("timm BEiT", METHODS["ia3"])
    attention, old = (
        each.encoder.encoder.blocks[0].attn  # type: ignore[union-attr, operator]
        for each in (tower, plain)
    )
    biased = torch.linspace(1, 2, 32)
    with torch.no_grad():
        attention.parametrizations.v_bias.original.copy_(biased)
        old.v_bias.copy_(biased)
        change = attention.qkv.parametrizations.weight[0]
        change.vlkd_f[64:] = 3.0  # of the values
    pixels = inputs_of(tower)
    assert attention.v_bias.equal(3 * biased)
    with torch.no_grad():
        old.v_bias.mul_(3)
        old.qkv.weight[64:] *= 3
    torch.testing.assert_close(tower.eval().features(pixels), plain.eval().features(pixels))
    folded = merged(tower.encoder).encoder.blocks[0].attn  # type: ignore[union-attr, operator]
    assert isinstance(folded.v_bias, nn.Parameter) and folded.v_bias.equal(3 * biased)
