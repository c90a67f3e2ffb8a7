"""Two towers as one model of open_clip or one CLIPModel, a text tower with its head as one
SentenceTransformer: their libraries give the towers' vectors, or the export is refused in one
line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.adapters import adapted
from tests.support.dual_encoders import make_dual
from tests.support.encoders import write_encoder
from tests.unit.towers.test_export import (
    OPENCLIP_IMAGE,
    OPENCLIP_TEXT,
    build,
    needs_adapters,
    sentence_model,
)
from vlkd_cli.builders.huggingface.dual import LogitStart
from vlkd_cli.errors import UserError
from vlkd_cli.preprocessing import standardize
from vlkd_cli.towers.tower import Tower
from vlkd_cli.towers.whole.hf_clip import write_hf_clip
from vlkd_cli.towers.whole.open_clip import write_open_clip
from vlkd_cli.towers.whole.parts import NUM_COMPARED, sample_images, sample_texts
from vlkd_cli.towers.whole.sentence import write_sentence_transformer

pytestmark = pytest.mark.filterwarnings("ignore")
LINEAR = {"name": "linear", "width": 8}
PLAIN = {**LINEAR, "bias": False}
MLP = {"name": "mlp", "width": 6, "layers": 3, "hidden": 9, "norm": "batch", "last_norm": "batch"}
START = LogitStart(20.0, None)


def image(**section: Any) -> Tower:
    config = {**OPENCLIP_IMAGE, **section.pop("config", {})}
    return build("image", builder="openclip", config=config, **section)


def text(**section: Any) -> Tower:
    config = {**OPENCLIP_TEXT, **section.pop("config", {})}
    return build("text", builder="openclip", config=config, **section)


def moved(tower: Tower) -> Tower:
    """Batch norms with statistics of their own."""
    generator = torch.Generator().manual_seed(3)
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return tower


def in_a_clean_process(folder: Path, code: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """What lines of Python make of these arrays in a process that never saw vlkd."""
    np.savez(folder / "given.npz", **arrays)
    begin = "import sys, numpy as np, torch\ngiven = np.load('given.npz', allow_pickle=False)\n"
    end = "\nassert not any(name.startswith('vlkd') for name in sys.modules)\n"
    script = f"{begin}with torch.no_grad():\n{code}{end}np.savez('found.npz', **found)\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, cwd=folder, env=environment
    )
    return dict(np.load(folder / "found.npz"))


def equal(found: np.ndarray, expected: torch.Tensor) -> None:
    assert len(expected) == NUM_COMPARED == 32
    largest = float(expected.abs().max())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * max(largest, 1))


@pytest.mark.slow
@torch.no_grad()
def test_open_clip_loads_both_halves_in_a_clean_process(tmp_path: Path) -> None:
    vision, words = image(head=PLAIN), text(head=LINEAR)
    words.head.linear.bias.normal_()
    (tmp_path / "out").mkdir()
    write_open_clip(vision, words, LogitStart(20.0, -3.0), tmp_path / "out", tmp_path / "out")
    code = """
    import open_clip
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:out")
    model = model.eval()
    tokenize = open_clip.get_tokenizer("local-dir:out")
    ids = tokenize([str(each) for each in given["texts"]])
    found = {
        "image": model.encode_image(torch.from_numpy(given["images"])).numpy(),
        "text": model.encode_text(ids).numpy(),
        "scale": model.logit_scale.exp().numpy(),
        "bias": model.logit_bias.numpy(),
    }
"""
    pixels, texts = sample_images(vision.input), sample_texts()
    images = standardize(pixels, vision.input).numpy()
    found = in_a_clean_process(tmp_path, code, images=images, texts=np.array(texts))
    equal(found["image"], vision.encode(pixels))
    equal(found["text"], words.encode(words.input(texts)))
    assert found["scale"] == pytest.approx(20) and found["bias"] == pytest.approx(-3)


@pytest.mark.slow
@torch.no_grad()
def test_transformers_loads_a_clip_model_in_a_clean_process(tmp_path: Path) -> None:
    vision, words = image(head=PLAIN), text(head=PLAIN)
    (tmp_path / "out").mkdir()
    write_hf_clip(vision, words, START, tmp_path / "out", tmp_path / "out")
    code = """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    from PIL import Image
    model = CLIPModel.from_pretrained("out").eval()
    tokenize, process = (
        each.from_pretrained("out") for each in (AutoTokenizer, AutoImageProcessor)
    )
    texts = [str(each) for each in given["texts"]]
    ids = tokenize(texts, padding=True, truncation=True, return_tensors="pt")
    pictures = [Image.fromarray(each) for each in given["pixels"]]
    images = process(pictures, return_tensors="pt")["pixel_values"]
    output = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"],
                   pixel_values=images)
    found = {
        "image": output.image_embeds.numpy(),
        "text": output.text_embeds.numpy(),
        "logits": output.logits_per_image.numpy(),
    }
"""
    pixels, texts = sample_images(vision.input), sample_texts()
    seen = pixels.permute(0, 2, 3, 1).numpy()
    found = in_a_clean_process(tmp_path, code, pixels=seen, texts=np.array(texts))
    unit = torch.nn.functional.normalize
    first, second = unit(vision.encode(pixels)), unit(words.encode(words.input(texts)))
    equal(found["image"], first)
    equal(found["text"], second)
    np.testing.assert_allclose(found["logits"], 20 * first @ second.T, rtol=0, atol=2e-4)


@pytest.mark.slow
@torch.no_grad()
def test_sentence_transformers_loads_encoder_pooler_and_head_in_a_clean_process(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    base = str(write_encoder(tmp_path / "base"))
    tower = moved(build(builder="huggingface", model=base, pooler={"name": "cls"}, head=MLP))
    (tmp_path / "out").mkdir()
    write_sentence_transformer(tower, tmp_path / "out", tmp_path / "out")
    code = """
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("out", device="cpu")
    found = {"text": model.encode([str(each) for each in given["texts"]])}
"""
    texts = sample_texts()
    found = in_a_clean_process(tmp_path, code, texts=np.array(texts))
    equal(found["text"], tower.encode(tower.input(texts)))


@torch.no_grad()
def test_clip_benchmark_loads_what_open_clip_does(tmp_path: Path) -> None:
    from clip_benchmark.models.open_clip import load_open_clip

    vision, words = image(), text()
    write_open_clip(vision, words, None, tmp_path, tmp_path)
    model, transform, tokenize = load_open_clip(f"local-dir:{tmp_path}", pretrained=None)
    texts = sample_texts(4)
    expected = words.encode(words.input(texts))
    torch.testing.assert_close(model.eval().encode_text(tokenize(texts)), expected)
    assert transform.transforms[0].size == 32
    state = load_file(tmp_path / "open_clip_model.safetensors")
    assert float(state["logit_scale"]) == pytest.approx(math.log(1 / 0.07))
    again = build("image", builder="openclip", model=str(tmp_path), pretrained=True)
    assert again.width == 24


@pytest.mark.parametrize("kind", ["resnet", "cut vocabulary"])
def test_other_halves_fit_where_the_library_has_them(kind: str, tmp_path: Path) -> None:
    """What was written is compared on the way; an error would be raised here."""
    if kind == "resnet":
        config = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "embed_dim": 24}
        vision = build("image", builder="openclip", model="RN50", config=config, head=LINEAR)
        vision.head.linear.bias.data.normal_()
        write_open_clip(vision, text(head=PLAIN, config={"quick_gelu": False}), START, tmp_path,
                        tmp_path)  # fmt: skip
        written = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
        assert written["embed_dim"] == 8
        return
    how = write_hf_clip(image(), text(config={"vocab_size": 700}), START, tmp_path, tmp_path)
    assert how.python == f"model = transformers.CLIPModel.from_pretrained({str(tmp_path)!r})"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 699
    assert config["text_config"]["hidden_act"] == "quick_gelu"


def biased(**section: Any) -> Tower:
    tower = image(head=LINEAR, **section)
    tower.head.linear.bias.data.fill_(1.0)
    return tower


OPEN_CLIP_MISFITS = {
    "give 24 and 8 values": lambda: (image(), text(head=PLAIN)),
    "it has a pooler": lambda: (image(pooler={"name": "gem"}), text(config={"embed_dim": 32})),
    "it is of builder `torchvision`": lambda: (
        build("image", builder="torchvision", model="resnet18", head={**PLAIN, "width": 24}),
        text(),
    ),
    "its head has a bias": lambda: (biased(), text(head=PLAIN)),
    "its head is not `linear`": lambda: (
        image(head={"name": "mlp", "width": 24, "layers": 2, "hidden": 4}),
        text(),
    ),
    "its vocabulary ends at 700": lambda: (image(), text(config={"vocab_size": 700})),
    "it has a learned prompt": lambda: (image(), text(prompt={"tokens": 3}, train="prompt")),
    "one of them has `quick_gelu`": lambda: (image(), text(config={"quick_gelu": False})),
}


@pytest.mark.parametrize("problem", OPEN_CLIP_MISFITS)
def test_what_open_clip_cannot_hold_is_one_line(problem: str, tmp_path: Path) -> None:
    vision, words = OPEN_CLIP_MISFITS[problem]()
    with pytest.raises(UserError, match=problem) as caught:
        write_open_clip(vision, words, START, tmp_path, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


HF_MISFITS = {
    "it has ls_init_value: 0.1": lambda: (image(config={"ls_init_value": 0.1}), START),
    "it has pool_type: avg": lambda: (image(config={"pool_type": "avg"}), START),
    "objective has a bias on the logits": lambda: (image(), LogitStart(20.0, -3.0)),
}


@pytest.mark.parametrize("problem", HF_MISFITS)
def test_what_a_clip_model_cannot_hold_is_one_line(problem: str, tmp_path: Path) -> None:
    vision, start = HF_MISFITS[problem]()
    with pytest.raises(UserError, match=problem) as caught:
        write_hf_clip(vision, text(), start, tmp_path, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("builder", ["huggingface", "sbert"])
def test_a_sentence_transformer_has_dense_modules_for_the_head_and_no_adapter(
    builder: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    section: dict[str, Any] = {"builder": builder, "adapter": {"name": "lora", "rank": 2}}
    if builder == "sbert":
        tower = build(**section, model=str(sentence_model(tmp_path)), head=LINEAR)
    else:
        base = str(write_encoder(tmp_path / "base"))
        tower = moved(build(**section, model=base, pooler={"name": "max"}, head=MLP))
    with torch.no_grad():
        for name, parameter in tower.encoder.named_parameters():
            if "vlkd_" in name:
                parameter.normal_()
    (tmp_path / "out").mkdir()
    write_sentence_transformer(tower, tmp_path / "out", tmp_path / "out")
    kinds = json.loads((tmp_path / "out" / "modules.json").read_text())
    names = [module["type"].rpartition(".")[2] for module in kinds]
    expected = {
        "sbert": ["Transformer", "Pooling", "Normalize", "Dense"],
        "huggingface": ["Transformer", "Pooling", "Dense", "Dense", "Dense"],
    }
    assert names == expected[builder]
    again = build(builder="sbert", model=str(tmp_path / "out"), train="none")
    with torch.no_grad():
        given = tower.input(sample_texts(5))
        torch.testing.assert_close(again.encode(given), tower.encode(given), rtol=0, atol=1e-5)


@torch.no_grad()
def test_word_vectors_with_a_head_are_one_sentence_transformer(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    lines = "a 1 2\nred 3 4.5\ndog 5 1e-3\nred 9 9\nit 1 1\n 7 7\nnew_york 2 0\nélan 0 3\n"
    (tmp_path / "words.txt").write_text(lines)
    tower = build(
        builder="sbert", model=str(tmp_path / "words.txt"), max_length=3, head=MLP, train="head"
    )
    (tmp_path / "out").mkdir()
    write_sentence_transformer(moved(tower), tmp_path / "out", tmp_path / "out")
    kinds = json.loads((tmp_path / "out" / "modules.json").read_text())
    names = [module["type"].rpartition(".")[2] for module in kinds]
    assert names == ["StaticEmbedding", "Dense", "Dense", "Dense"]
    texts = ["A RED dog", "it's a red-dog, Élan", "cat", "", "new_york!", "a red it dog", "▁a é"]
    expected = tower.encode(tower.input(texts))
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    again = build(builder="sbert", model=str(tmp_path / "out"), train="none")
    torch.testing.assert_close(again.encode(again.input(texts)), expected, rtol=0, atol=1e-6)


def mismatched_text(problem: str, folder: Path) -> Tower:
    torch.manual_seed(0)
    base = str(write_encoder(folder / "base"))
    if problem == "half of a dual encoder":
        make_dual("clip", folder / "clip")
        return build(builder="huggingface", model=str(folder / "clip"))
    if problem == "cannot be merged":
        return adapted(Path(base), "bottleneck")
    if problem in ("has words in upper case", "takes the mean of word vectors"):
        upper = problem == "has words in upper case"
        (folder / "words.txt").write_text(f"{'Paris' if upper else 'paris'} 1 2\n")
        pooler = {} if upper else {"pooler": {"name": "max"}}
        return build(builder="sbert", model=str(folder / "words.txt"), **pooler)
    keys: dict[str, dict[str, Any]] = {
        "has no module for its pooler": {"pooler": {"name": "gem"}},
        "its head has a LayerNorm": {"head": {**MLP, "norm": "layer"}},
        "it reads `own_pooler`": {"own_pooler": True},
        "no module for its head": {"head": {"name": "glu", "width": 4}},
    }
    return build(builder="huggingface", model=base, **keys[problem])


@pytest.mark.parametrize(
    "problem",
    [
        "has no module for its pooler",
        "its head has a LayerNorm",
        "it reads `own_pooler`",
        "no module for its head",
        "half of a dual encoder",
        "has words in upper case",
        "takes the mean of word vectors",
        pytest.param("cannot be merged", marks=needs_adapters),
    ],
)
def test_what_a_sentence_transformer_cannot_hold_is_one_line(problem: str, tmp_path: Path) -> None:
    tower = mismatched_text(problem, tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=problem) as caught:
        write_sentence_transformer(tower, tmp_path / "out", tmp_path / "out")
    assert "\n" not in str(caught.value) and not list((tmp_path / "out").iterdir())


def test_a_library_that_gives_other_vectors_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both halves are written without the head that the tower has."""
    monkeypatch.setattr(
        "vlkd_cli.towers.whole.open_clip._textual",
        lambda tower, encoder, section: encoder.encoder.state_dict(),
    )
    words = text(head={**PLAIN, "width": 24})
    with pytest.raises(UserError, match=r"gives other vectors: least cosine .* difference \d"):
        write_open_clip(image(), words, START, tmp_path, tmp_path)
