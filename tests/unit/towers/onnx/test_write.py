"""Towers of every builder as ONNX files: onnxruntime gives the tower's vectors, at other numbers of
rows and other lengths than those that were traced; and files that do not are removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.support.adapters import adapted, shake
from tests.support.dual_encoders import make_dual
from tests.support.encoders import SENTENCES, write_encoder
from tests.unit.towers.test_export import (
    BERT,
    OPENCLIP_IMAGE,
    OPENCLIP_TEXT,
    build,
    needs_adapters,
    pictures,
    sentence_model,
)
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.towers.exported import load_exported
from vlkd_cli.towers.onnx import graph as graphs
from vlkd_cli.towers.onnx.check import Agreement, agree
from vlkd_cli.towers.onnx.files import read_metadata
from vlkd_cli.towers.onnx.graph import TowerGraph
from vlkd_cli.towers.onnx.write import Wanted, export_onnx, export_onnx_pair
from vlkd_cli.towers.tower import Tower

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytestmark = pytest.mark.filterwarnings("ignore")
HEAD = {"head": {"name": "mlp", "width": 5, "layers": 2, "hidden": 7}}

IMAGE_TOWERS: dict[str, dict[str, Any]] = {
    "openclip": {"builder": "openclip", "config": OPENCLIP_IMAGE},
    "openclip, gem, head": {
        "builder": "openclip",
        "config": OPENCLIP_IMAGE,
        "pooler": {"name": "gem"},
        **HEAD,
    },
    "openclip, frozen, head": {
        "builder": "openclip",
        "config": OPENCLIP_IMAGE,
        "train": "head",
        **HEAD,
    },
    "openclip, lora": {
        "builder": "openclip",
        "config": OPENCLIP_IMAGE,
        "adapter": {"name": "lora"},
    },
    "timm": {"builder": "timm", "model": "resnet10t", "image_size": 64},
    "torchvision": {"builder": "torchvision", "model": "resnet18", "image_size": 64},
    "huggingface": {
        "builder": "huggingface",
        "config": {"type": "vit", "layers": 1, "width": 16, "heads": 2},
        "image_size": 32,
    },
}


def run(folder: Path, inputs: dict[str, torch.Tensor], file: str = "model.onnx") -> list[Any]:
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    largest = float(expected.abs().max())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * max(largest, 1))


def written(tower: Tower, folder: Path, **wanted: Any) -> dict[str, Any]:
    """Write a tower; its page."""
    folder.mkdir()
    export_onnx(tower, folder, folder, (), Wanted(**wanted))
    page: dict[str, Any] = yaml.safe_load((folder / "vlkd_tower.yaml").read_text())
    return page


@torch.no_grad()
@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_an_image_tower_takes_uint8_pixels(name: str, tmp_path: Path) -> None:
    tower = build("image", **IMAGE_TOWERS[name])
    page = written(tower, tmp_path / "out")
    images = pictures(tower)
    for rows in (images, images[:1]):
        close(run(tmp_path / "out", {"images": rows})[0], tower.encode(rows))
    height, width = tower.input.size_px
    assert page["inputs"] == {"images": ["batch", 3, height, width]}
    assert page["outputs"] == {"vector": ["batch", tower.width]}


def text_tower(kind: str, folder: Path) -> Tower:
    """A text tower of a builder."""
    torch.manual_seed(0)
    if kind == "openclip":
        return build(builder="openclip", config=OPENCLIP_TEXT, **HEAD)
    if kind == "openclip, attention":
        return build(
            builder="openclip", config=OPENCLIP_TEXT, pooler={"name": "attention", "heads": 2}
        )
    if kind == "sbert":
        return build(builder="sbert", model=str(sentence_model(folder)), **HEAD)
    if kind == "scratch":
        return build(builder="huggingface", config=BERT)
    if kind in ("clip", "siglip"):
        make_dual(kind, folder / kind)
        return build(builder="huggingface", model=str(folder / kind))
    if kind.startswith("adapter "):
        tower = adapted(write_encoder(folder / "base"), kind.removeprefix("adapter "))
        shake(tower)
        return tower.eval()
    base = str(write_encoder(folder / kind, kind))
    return build(builder="huggingface", model=base, pooler={"name": "gem"}, **HEAD)


TEXT_TOWERS = [
    "openclip",
    "sbert",
    "scratch",
    "bert",
    "clip",
    "siglip",
    pytest.param("openclip, attention", marks=pytest.mark.slow),
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("t5", "mpnet", "deberta-v2")),
    pytest.param("adapter lora", marks=needs_adapters),
    pytest.param("adapter prefix_tuning", marks=[needs_adapters, pytest.mark.slow]),
]


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXT_TOWERS)
def test_a_text_tower_takes_the_ids_of_the_tokenizer_next_to_it(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tower = text_tower(kind, tmp_path)
    page = written(tower, tmp_path / "out")
    fixed = "length" not in page["inputs"]["input_ids"]
    assert fixed == (kind == "siglip")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    names = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").get_inputs()
    for texts in (SENTENCES, SENTENCES[:1], ["a"], [" ".join(SENTENCES * 20)]):
        padding: Any = "max_length" if fixed else True
        given = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt")
        assert page["tokenizer"].startswith("transformers.AutoTokenizer")
        inputs = {each.name: given[each.name] for each in names}
        close(run(tmp_path / "out", inputs)[0], tower.encode(tower.input(texts)))


@torch.no_grad()
def test_a_learned_prompt_is_inside_the_graph(tmp_path: Path) -> None:
    tower = build(builder="openclip", config=OPENCLIP_TEXT, prompt={"tokens": 3}, train="prompt")
    written(tower, tmp_path / "out")
    plain = tower.input.tokenizer(SENTENCES)
    close(run(tmp_path / "out", plain)[0], tower.encode(tower.input(SENTENCES)))


@torch.no_grad()
def test_word_vectors_go_with_their_words(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog 1 2\nred 3 4.5\nred 6 7\nthe 5 1e-3\n")
    tower = build(builder="sbert", model=str(tmp_path / "words.txt"))
    written(tower, tmp_path / "out")
    assert (tmp_path / "out" / "words.txt").read_text() == "dog\n\nred\nthe\n"
    close(run(tmp_path / "out", tower.input(SENTENCES))[0], tower.encode(tower.input(SENTENCES)))


@torch.no_grad()
def test_two_towers_are_one_graph_with_their_logits(tmp_path: Path) -> None:
    image = build("image", builder="openclip", config=OPENCLIP_IMAGE)
    text = build(builder="openclip", config=OPENCLIP_TEXT)
    how = export_onnx_pair(
        image, text, tmp_path, tmp_path, (), Wanted(normalize=True), scale=20.0, bias=-3.0
    )
    assert how.name == "dual_encoder"
    images, words = pictures(image), text.input(SENTENCES[:2])
    first, second, logits = run(tmp_path, {"images": images, **words})
    close(first, torch.nn.functional.normalize(image.encode(images), dim=-1))
    close(second, torch.nn.functional.normalize(text.encode(words), dim=-1))
    np.testing.assert_allclose(logits, 20 * first @ second.T - 3, rtol=0, atol=1e-4)
    assert logits.shape == (3, 2)


def test_the_file_describes_itself_and_its_preprocessing(tmp_path: Path) -> None:
    tower = build("image", builder="openclip", config=OPENCLIP_IMAGE)
    page = written(
        tower, tmp_path / "out", normalize=True, int8=True, facts={"recipe_digest": "abc"}
    )
    for file in ("model.onnx", "model.int8.onnx"):
        facts = read_metadata(tmp_path / "out" / file)
        assert facts["recipe_digest"] == page["recipe_digest"] == "abc"
        assert facts["vlkd_version"] and facts["tower"] == "image"
        assert facts["normalized"] == "true"
        assert json.loads(facts["preprocessing"])["size_px"] == [32, 32]
    assert page["compared_with_the_tower"]["largest_difference"] <= 1e-4
    norms = np.linalg.norm(run(tmp_path / "out", {"images": pictures(tower)})[0], axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    with pytest.raises(RecipeError, match="ONNX file, which vlkd writes and does not read"):
        load_exported(tmp_path / "out")


@torch.no_grad()
def test_8_bit_weights_are_a_quarter_and_nearly_the_same(tmp_path: Path) -> None:
    tower = build(builder="openclip", config={**OPENCLIP_TEXT, "width": 64})
    written(tower, tmp_path / "out", int8=True)
    full, small = (tmp_path / "out" / name for name in ("model.onnx", "model.int8.onnx"))
    assert small.stat().st_size < 0.3 * full.stat().st_size
    words = tower.input(SENTENCES)
    found = torch.from_numpy(run(tmp_path / "out", words, small.name)[0])
    agreement = agree([(tower.encode(words), found)])
    assert 0.98 < agreement.cosine < 1 and not agreement.holds


@needs_adapters
def test_an_untraceable_tower_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The slower exporter does not know a QR decomposition either.
    monkeypatch.setattr("vlkd_cli.towers.onnx.write.OPSETS", ["torchscript"])
    tower = adapted(write_encoder(tmp_path / "base"), "loreft").eval()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError) as caught:
        export_onnx(tower, tmp_path / "out", tmp_path / "out")
    line = str(caught.value)
    assert line.startswith("tower 'text' cannot be written as ONNX: ")
    assert line.endswith("Export it in its library's format (without --format onnx).")
    assert "\n" not in line and not list((tmp_path / "out").iterdir())


def test_a_tower_that_encodes_texts_by_length_is_refused(tmp_path: Path) -> None:
    tower = build(builder="huggingface", config=BERT)
    tower.encoder.by_length = True
    with pytest.raises(UserError, match="padding changes what its encoder gives"):
        export_onnx(tower, tmp_path, tmp_path)


def test_a_file_that_gives_other_vectors_is_removed_and_both_numbers_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph that is written is that of a tower with other weights."""
    tower = build("image", builder="openclip", config=OPENCLIP_IMAGE)
    other = build("image", builder="openclip", config=OPENCLIP_IMAGE)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    write = graphs.write_graph

    def write_other(graph: TowerGraph, *given: Any, **options: Any) -> None:
        write(TowerGraph(other, graph.names, normalize=False), *given, **options)

    monkeypatch.setattr("vlkd_cli.towers.onnx.write.write_graph", write_other)
    monkeypatch.setattr("vlkd_cli.towers.onnx.write.OPSETS", ["torchscript"])
    with pytest.raises(
        UserError, match=r"was removed, gives other vectors .* least cosine 0\.\d+ .* difference \d"
    ):
        export_onnx(tower, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def agreement_of(first: list[list[float]], second: list[list[float]]) -> Agreement:
    return agree([(torch.tensor(first), torch.tensor(second))])


def test_agreement_is_the_worst_cosine_and_the_difference_over_the_largest_value() -> None:
    found = agreement_of([[1.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [3.0, 4.0]])
    assert found.cosine == pytest.approx(0.8) and found.difference == pytest.approx(0.75)
    assert found.rows == 2 and not found.holds
    assert agreement_of([[0.0, 0.0]], [[0.0, 0.0]]).holds
    assert agreement_of([[0.0, 0.0]], [[1.0, 0.0]]).cosine == 0
    assert not agreement_of([[1.0, float("nan")]], [[1.0, float("nan")]]).holds


def silent(function: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> bool:
    capfd.readouterr()
    function()
    captured = capfd.readouterr()
    return not captured.out and not captured.err


def test_an_export_prints_nothing_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tower = build(builder="huggingface", config=BERT)
    assert silent(lambda: written(tower, tmp_path / "out", int8=True), capfd)
