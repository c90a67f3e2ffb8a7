"""Towers written for their libraries: the printed line of Python and the printed recipe both give
the tower's features again."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.support.adapters import METHODS, adapted, embed, shake
from tests.support.encoders import SENTENCES, write_encoder
from vlkd_cli import catalog
from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.builders.huggingface.save import save_tokenizer
from vlkd_cli.builders.tokenizers import ClipTokenizer
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.errors import WeightsError
from vlkd_cli.preprocessing import standardize
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.export import ADDED, PAGE, ExportedTower, export_tower
from vlkd_cli.towers.tower import Tower

needs_adapters = pytest.mark.skipif(
    not adapter_rules.is_installed(), reason="needs the extra 'adapters'"
)
OPENCLIP_IMAGE = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "quick_gelu": True,
}
OPENCLIP_IMAGE_SECTION = {
    "layers": 1,
    "width": 32,
    "head_width": 16,
    "image_size": 32,
    "patch_size": 8,
}
OPENCLIP_TEXT = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "embed_dim": 24,
    "context_length": 20,
    "quick_gelu": True,
}
BERT = {"layers": 2, "width": 32, "heads": 2, "max_length": 24}


def build(name: str = "text", **section: Any) -> Tower:
    """A tower with weights from a fixed seed, moved away from its start."""
    torch.manual_seed(0)
    tower = assemble(name, TowerSpec.model_validate(section))
    shake(tower)
    return tower.eval()


def written(tower: Tower, folder: Path) -> ExportedTower:
    folder.mkdir()
    return export_tower(tower, folder, folder)


def loaded(how: ExportedTower) -> Any:
    """What the printed Python makes, in eval mode."""
    libraries = (
        "transformers",
        "sentence_transformers",
        "open_clip",
        "torchvision",
        "timm",
        "torch",
        "safetensors.torch",
    )
    named = [name for name in libraries if f"{name}." in how.how.python]
    names: dict[str, Any] = {name.partition(".")[0]: __import__(name) for name in named}
    exec(how.how.python, names)
    return names["model"].eval()


def again(how: ExportedTower, name: str = "text") -> Tower:
    """The tower that the printed recipe makes, under another random state."""
    torch.manual_seed(1)
    return assemble(name, TowerSpec.model_validate(how.how.recipe)).eval()


def pictures(tower: Tower) -> Tensor:
    return torch.randint(
        0,
        256,
        (3, 3, *tower.input.size_px),
        generator=torch.Generator().manual_seed(2),
        dtype=torch.uint8,
    )


def image_features(tower: Tower) -> Tensor:
    with torch.no_grad():
        return tower.features(pictures(tower))


def text_features(tower: Tower, sentences: list[str] = SENTENCES) -> Tensor:
    with torch.no_grad():
        return tower.features(tower.input(sentences))


def transformers_mean(folder: Path, model: Any, sentences: list[str] = SENTENCES) -> Tensor:
    """Mean of the last states over the real tokens, by transformers alone."""
    from transformers import AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(
        sentences, padding=True, truncation=True, return_tensors="pt"
    )
    mask = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state
    return (states * mask).sum(1) / mask.sum(1)


def merging() -> list[str]:
    return [name for name, (kind, _) in METHODS.items() if catalog.load("adapter", kind).merges]


def test_the_methods_that_merge():
    assert merging() == ["lora", "dora", "vera", "ia3"]


@needs_adapters
@pytest.mark.parametrize("kind", ["bert", "t5"])
@pytest.mark.parametrize("method", merging())
def test_a_merged_adapter_is_a_plain_transformers_folder_with_the_tower_s_features(
    method: str, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tower = adapted(write_encoder(tmp_path / "base", kind), method)
    shake(tower)
    before = text_features(tower.eval())
    how = written(tower, tmp_path / "out")
    assert how.how.adapter == "merged" and not how.how.note and "adapter" not in how.files
    torch.testing.assert_close(
        transformers_mean(tmp_path / "out", loaded(how)), before, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(text_features(again(how)), before, rtol=0, atol=1e-5)
    assert again(how).count_parameters()[0] == how.num_parameters < tower.count_parameters()[0]
    assert torch.equal(text_features(tower), before), "the tower itself must stay"


@needs_adapters
@pytest.mark.parametrize("method", [name for name in METHODS if name not in merging()])
def test_an_adapter_that_cannot_be_merged_is_stored_next_to_its_encoder_and_reported(
    method: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = write_encoder(tmp_path / "base")
    tower = adapted(base, method)
    shake(tower)
    how = written(tower, tmp_path / "out")
    assert how.how.adapter == "beside"
    assert how.how.note.startswith(
        f"adapter '{METHODS[method][0]}' is part of the computation and cannot be merged"
    )
    assert {"adapter/adapter.yaml", "adapter/adapter.safetensors"} <= set(how.files)
    torch.testing.assert_close(
        text_features(again(how)), text_features(tower.eval()), rtol=0, atol=1e-5
    )
    plain = text_features(build(builder="huggingface", model=str(base), train="none"))
    torch.testing.assert_close(
        transformers_mean(tmp_path / "out", loaded(how)), plain, rtol=0, atol=1e-5
    )


@needs_adapters
def test_an_unmerged_adapter_over_a_t5_encoder_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = adapted(write_encoder(tmp_path / "base", "t5"), "bottleneck")
    shake(tower)
    how = written(tower, tmp_path / "out")
    torch.testing.assert_close(
        text_features(again(how)), text_features(tower.eval()), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "t5", "clip_text_model", "bart"])
def test_an_encoder_that_learned_wholly_loads_with_transformers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = (
        {
            "vocab_size": 40,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
        }
        if kind == "bart"
        else {}
    )
    base = write_encoder(tmp_path / "base", kind, **sizes)
    tower = build(builder="huggingface", model=str(base), max_length=6)
    how = written(tower, tmp_path / "out")
    before = text_features(tower)
    torch.testing.assert_close(
        transformers_mean(tmp_path / "out", loaded(how)), before, rtol=0, atol=1e-5
    )
    assert torch.equal(text_features(again(how)), before)
    # The encoder alone, the table of words once.
    assert (
        sum(tensor.numel() for tensor in load_file(tmp_path / "out" / "model.safetensors").values())
        == how.num_parameters
    )


def test_an_encoder_from_half_precision_weights_is_reported_as_float32(tmp_path: Path) -> None:
    from transformers import AutoConfig

    base = write_encoder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "dtype": "float16", "torch_dtype": "float16"})
    )
    how = written(build(builder="huggingface", model=str(base)), tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype in (torch.float32, "float32")
    assert {parameter.dtype for parameter in loaded(how).parameters()} == {torch.float32}


def test_a_model_s_own_pooler_is_exported_with_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = build(
        builder="huggingface", model=str(write_encoder(tmp_path / "base")), own_pooler=True
    )
    how = written(tower, tmp_path / "out")
    assert torch.equal(text_features(again(how)), text_features(tower))
    assert how.how.feature == "pooler_output"


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_clip_s_byte_pairs_become_a_tokenizer_of_transformers(kind: str, tmp_path: Path) -> None:
    tower = build(
        builder="huggingface", config={"type": kind, **BERT, "vocab_size": 900}, tokenizer="clip"
    )
    how = written(tower, tmp_path / "out")
    before = text_features(tower)
    torch.testing.assert_close(
        transformers_mean(tmp_path / "out", loaded(how)), before, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(text_features(again(how)), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "pad", "shift"), [(49408, 0, 1), (900, 1, 2)])
def test_the_tokenizer_made_of_clip_s_gives_its_ids(
    size: int, pad: int, shift: int, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    clip = ClipTokenizer(context_length=12, vocabulary_size=size, masked=True, pad=pad, shift=shift)
    save_tokenizer(clip, tmp_path)
    texts = [
        "A photo  of a\tDOG's tail, isn't it?",
        "Übergrößenträger 東京 naïve e\u0301",
        "12:30 --- (a+b)=c!!",
        "",
        "one two three " * 20,
    ]
    own = AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding=True, truncation=True, return_tensors="pt"
    )
    expected = clip(texts)
    assert torch.equal(own["input_ids"], expected["input_ids"]) and torch.equal(
        own["attention_mask"], expected["attention_mask"]
    )


def test_a_trained_tokenizer_goes_with_its_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = {"builder": "huggingface", "config": BERT, "tokenizer": "trained"}
    tower = assemble("text", TowerSpec.model_validate(spec), captions=lambda: SENTENCES).eval()
    how = written(tower, tmp_path / "out")
    assert torch.equal(text_features(again(how)), text_features(tower))
    torch.testing.assert_close(
        transformers_mean(tmp_path / "out", loaded(how)), text_features(tower), rtol=0, atol=1e-5
    )


def sentence_model(folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(0)
    base = write_encoder(folder / "base")
    SentenceTransformer(
        modules=[Transformer(str(base)), Pooling(64, "mean"), Normalize()], device="cpu"
    ).save(str(folder / "sentence"))
    return folder / "sentence"


def test_a_sentence_encoder_comes_back_as_a_sentence_transformer(tmp_path: Path) -> None:
    tower = build(builder="sbert", model=str(sentence_model(tmp_path)), max_length=6)
    how = written(tower, tmp_path / "out")
    before = text_features(tower)
    torch.testing.assert_close(
        loaded(how).encode(SENTENCES, convert_to_tensor=True), before, rtol=0, atol=1e-5
    )
    assert torch.equal(text_features(again(how)), before)


def test_word_vectors_that_learned_come_back_exactly(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog 1 2\nred 3 4.5\nthe 5 1e-3\n")
    tower = build(builder="sbert", model=str(tmp_path / "words.txt"))
    how = written(tower, tmp_path / "out")
    assert torch.equal(text_features(again(how)), text_features(tower))


@pytest.mark.parametrize("name", ["image", "text"])
def test_a_tower_of_open_clip_loads_with_open_clip(name: str, tmp_path: Path) -> None:
    import open_clip

    tower = build(
        name, builder="openclip", config=OPENCLIP_IMAGE if name == "image" else OPENCLIP_TEXT
    )
    how = written(tower, tmp_path / "out")
    model = loaded(how)
    if name == "image":
        before = image_features(tower)
        after = model(standardize(pictures(tower), tower.input)).detach()
        assert torch.equal(image_features(again(how, name)), before)
        assert again(how, name).input == tower.input
    else:
        before = text_features(tower)
        after = model(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(SENTENCES)).detach()
        assert torch.equal(text_features(again(how)), before)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_what_weights_ask_of_images_is_in_open_clip_s_configuration(tmp_path: Path) -> None:
    tower = build(
        "image",
        builder="openclip",
        model="RN50",
        config={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "embed_dim": 16},
    )
    tower.encoder.input = tower.input = tower.input._replace(
        mean=(0.5, 0.5, 0.4), resize="squash", interpolation="bilinear"
    )
    assert again(written(tower, tmp_path / "out"), "image").input == tower.input


def test_a_learned_prompt_is_stored_in_its_own_file_and_reported(tmp_path: Path) -> None:
    tower = build(builder="openclip", config=OPENCLIP_TEXT, prompt={"tokens": 3}, train="prompt")
    how = written(tower, tmp_path / "out")
    assert "open_clip cannot hold the learned prompt" in how.how.note
    (prompt,) = load_file(tmp_path / "out" / "prompt.safetensors").values()
    assert prompt.shape == (3, 32)
    plain = build(builder="openclip", config=OPENCLIP_TEXT, train="none")
    assert torch.equal(text_features(again(how)), text_features(plain))


def test_a_cut_vocabulary_of_open_clip_is_reported(tmp_path: Path) -> None:
    how = written(
        build(builder="openclip", config={**OPENCLIP_TEXT, "vocab_size": 700}), tmp_path / "out"
    )
    assert "the vocabulary ends at 700" in how.how.note
    assert again(how).input(SENTENCES)["input_ids"].max() == 699


def loads_with_its_library_and_with_vlkd(tower: Tower, folder: Path) -> ExportedTower:
    """Write an image tower, and see that its library and a recipe make the same features of the
    files."""
    how = written(tower, folder)
    before = image_features(tower)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(how)(standardize(pictures(tower), tower.input)), before, rtol=0, atol=1e-5
        )
    assert torch.equal(image_features(again(how, "image")), before)
    return how


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("resnet18", {}),
        ("mobilenet_v3_small", {"image_size": 64, "config": {"width_mult": 0.5}}),
        pytest.param("vit_b_16", {"image_size": 32}, marks=pytest.mark.slow),
        ("googlenet", {"image_size": 64}),
    ],
)
def test_a_tower_of_torchvision_loads_with_torchvision_and_as_pretrained_file(
    model: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    tower = build("image", builder="torchvision", model=model, **keys)
    how = loads_with_its_library_and_with_vlkd(tower, tmp_path / "out")
    assert not how.how.note and again(how, "image").input == tower.input


def test_preprocessing_that_a_file_of_weights_lacks_is_reported(tmp_path: Path) -> None:
    tower = build("image", builder="torchvision", model="resnet50", image_size=64)
    tower.encoder.input = tower.input._replace(resize_px=70)
    assert (
        "a recipe that loads the file prepares images as"
        in written(tower, tmp_path / "out").how.note
    )


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("resnet10t.c3_in1k", {"image_size": 64}),
        ("vit_tiny_patch16_224", {"image_size": 32, "config": {"depth": 1}}),
    ],
)
def test_a_tower_of_timm_loads_with_timm_and_as_pretrained_file(
    model: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    tower = build("image", builder="timm", model=model.partition(".")[0], **keys)
    tower.encoder.name = model
    how = loads_with_its_library_and_with_vlkd(tower, tmp_path / "out")
    assert again(how, "image").input == tower.input


def test_pooler_and_head_are_stored_with_a_page_that_rebuilds_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    section = {
        "pooler": {"name": "attention", "heads": 2},
        "head": {"name": "mlp", "width": 5, "layers": 2, "hidden": 7},
    }
    tower = build(builder="huggingface", model=str(write_encoder(tmp_path / "base")), **section)
    written(tower, tmp_path / "out")
    page = yaml.safe_load((tmp_path / "out" / PAGE).read_text())
    assert page["head"] == section["head"] and page["weights_of_pooler_and_head"] == ADDED
    # Its paths are relative to its folder.
    with chdir(tmp_path / "out"):
        rebuilt = assemble(
            "text", TowerSpec.model_validate({**page["recipe"], "head": page["head"]})
        )
    missing, unexpected = rebuilt.load_state_dict(load_file(tmp_path / "out" / ADDED), strict=False)
    assert not unexpected and all(name.startswith("backbone.") for name in missing)
    assert torch.equal(embed(rebuilt), embed(tower))


def test_a_tower_out_of_another_run_is_exported_as_what_it_was_built_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    section = {
        "builder": "huggingface",
        "model": str(write_encoder(tmp_path / "base")),
        "pooler": {"name": "cls"},
    }
    tower = build(**section)
    checkpoint = Checkpoint(
        step=1,
        recipe=json.dumps({"towers": {"text": section}}),
        world_size=1,
        global_batch=1,
        towers={"text": tower.trainable_state()},
    )
    checkpoint.save(tmp_path / "run" / "checkpoints")
    taken = assemble(
        "text", TowerSpec.model_validate({"run": str(tmp_path / "run"), "train": "none"})
    ).eval()
    how = written(taken, tmp_path / "out")
    assert how.how.recipe == {
        "builder": "huggingface",
        "model": str(tmp_path / "out"),
        "pooler": {"name": "cls"},
    }
    assert torch.equal(text_features(again(how)), text_features(tower))


def test_a_builder_without_a_format_is_reported(tmp_path: Path) -> None:
    class Own(Backbone):
        modality = "image"

    with pytest.raises(
        WeightsError,
        match=r"Own cannot be exported: it has no format of its own\. Take the tower from its run",
    ):
        Own().export(tmp_path, tmp_path, {})


def test_a_text_tower_of_open_clip_around_a_transformers_encoder_has_projection_and_tokenizer(
    tmp_path: Path,
) -> None:
    import open_clip

    torch.manual_seed(0)
    base = str(write_encoder(tmp_path / "base"))
    names = {
        "hf_model_name": base,
        "hf_tokenizer_name": base,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
    }
    settings = {
        "embed_dim": 24,
        "vision_cfg": OPENCLIP_IMAGE_SECTION,
        "text_cfg": {**names, "context_length": 12},
    }
    (tmp_path / "base" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": settings, "preprocess_cfg": {}})
    )
    tower = build(builder="openclip", model=base)
    how = written(tower, tmp_path / "out")
    before = text_features(tower)
    assert torch.equal(text_features(again(how)), before)
    after = loaded(how)(
        open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(SENTENCES)
    ).detach()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
