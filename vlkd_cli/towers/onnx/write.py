"""A tower, or a pair of towers, as a folder with an ONNX file that was compared with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

import vlkd_cli
from vlkd_cli.builders.backbone import Export
from vlkd_cli.errors import UserError
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.modality import PAIR
from vlkd_cli.towers.export import DUAL, PAGE, ExportedTower
from vlkd_cli.towers.merging import merged_tower
from vlkd_cli.towers.onnx.check import Agreement, Inputs, compare
from vlkd_cli.towers.onnx.files import INT8, MODEL, add_metadata, quantize, save_text_input
from vlkd_cli.towers.onnx.graph import (
    IMAGES,
    OPSETS,
    REMEDY,
    VECTOR,
    PairGraph,
    TowerGraph,
    tokenizer_of,
    write_graph,
)
from vlkd_cli.towers.tower import Tower

SENTENCES = (
    "a",
    "a photo of a dog",
    "two red dogs and the blue cat",
    "the quick brown fox jumps over the lazy dog",
    "a red circle above a green square, next to the small house on a hill",
)
WORDS_OF_THE_LONGEST = 3000
LONGEST_UNLIMITED = 64
"""Tokens of the longest text that is tried where a tokenizer has no limit."""


class Wanted(NamedTuple):
    """What is written next to a graph.

    Args:
        normalize: L2-normalize the vectors inside the graph.
        int8: also write a copy with 8-bit weights.
        facts: additional metadata of the file, e.g. the digest of the recipe.
    """

    normalize: bool = False
    int8: bool = False
    facts: Mapping[str, str] = {}


def export_onnx(
    tower: Tower,
    folder: Path,
    destination: Path,
    samples: Sequence[Inputs] = (),
    wanted: Wanted = Wanted(),
    *,
    name: str | None = None,
) -> ExportedTower:
    """Write a tower in eval mode into an empty folder: `model.onnx` from uint8 images `[batch, 3,
    H, W]` or token ids `[batch, length]` to `vector` `[batch, width]`, the tokenizer's files, and
    `vlkd_tower.yaml`.

    Args:
        destination: where the folder will be when it is done, as written in its page.
        samples: inputs of the tower's own data that the file is also compared on.
        name: the tower's name in the recipe, where it is a copy that bears another's.

    Raises:
        UserError: the tower cannot be traced, or onnxruntime gives other numbers.
    """
    name = name or tower.name
    what = f"tower '{name}'"
    refuse_untraceable(tower, what)
    tower = merged_tower(tower)
    trials = trial_inputs(tower)
    graph = TowerGraph(tower, list(trials[0]), normalize=wanted.normalize)
    axes = {**_axes(tower, trials, "batch"), VECTOR: {0: "batch"}}
    agreement = _write(graph, trials, samples, (VECTOR,), axes, folder, what)
    page = {
        "tower": name,
        "modality": tower.modality,
        **_page(wanted, agreement),
        "inputs": _shapes(trials[0], axes),
        "outputs": {VECTOR: ["batch", tower.width]},
        "normalized": wanted.normalize,
        **_input_page(tower, folder, trials),
    }
    return _finished(name, page, folder, destination, wanted, [tower], what)


def export_onnx_pair(
    image: Tower,
    text: Tower,
    folder: Path,
    destination: Path,
    samples: Sequence[Inputs] = (),
    wanted: Wanted = Wanted(),
    *,
    scale: float = 1.0,
    bias: float = 0.0,
) -> ExportedTower:
    """Write an image and a text tower of one width as one graph: `image_vector`, `text_vector` and
    `logits` `[images, texts]`, `scale` times cosine plus `bias`; see `export_onnx`.

    Args:
        samples: with inputs of both towers.
    """
    what = f"towers '{image.name}' and '{text.name}'"
    refuse_untraceable(text, what)
    image, text = merged_tower(image), merged_tower(text)
    pictures, texts = trial_inputs(image), trial_inputs(text)
    trials = [{**first, **second} for first, second in zip(pictures, texts, strict=True)]
    graph = PairGraph(
        TowerGraph(image, [IMAGES], normalize=wanted.normalize),
        TowerGraph(text, list(texts[0]), normalize=wanted.normalize),
        scale,
        bias,
    )
    outputs = {
        "image_vector": {0: "images"},
        "text_vector": {0: "texts"},
        "logits": {0: "images", 1: "texts"},
    }
    axes = {**_axes(image, pictures, "images"), **_axes(text, texts, "texts"), **outputs}
    agreement = _write(graph, trials, samples, list(outputs), axes, folder, what)
    page = {
        "towers": [image.name, text.name],
        **_page(wanted, agreement),
        "inputs": _shapes(trials[0], axes),
        "outputs": {
            "image_vector": ["images", image.width],
            "text_vector": ["texts", text.width],
            "logits": ["images", "texts"],
        },
        "normalized": wanted.normalize,
        "logit_scale": scale,
        "logit_bias": bias,
        **_input_page(image, folder, pictures),
        **_input_page(text, folder, texts),
    }
    return _finished(DUAL, page, folder, destination, wanted, [image, text], what)


def refuse_untraceable(tower: Tower, what: str) -> None:
    """Raises UserError where a trace would hold for the traced inputs only, or takes too long."""
    if tower.modality not in PAIR:
        raise UserError(
            f"{what} cannot be written as ONNX: its centers are found one after the other, each a"
            f" step of the graph. {REMEDY[:-1]}, or choose others by --tower."
        )
    if getattr(tower.encoder, "by_length", False):
        raise UserError(
            f"{what} cannot be written as ONNX: padding changes what its encoder gives, so texts of"
            f" equal length are encoded together, which a graph cannot do. {REMEDY}"
        )


def trial_inputs(tower: Tower) -> list[dict[str, Tensor]]:
    """Inputs of five rows, as a graph is traced with, and twice of one: random pixels, or the
    longest text and the shortest."""
    if isinstance(tower.input, ImageInput):
        generator = torch.Generator().manual_seed(0)
        shape = (7, 3, *tower.input.size_px)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return [{IMAGES: part} for part in pixels.split([5, 1, 1])]
    tokenizer = tokenizer_of(tower)
    longest = " ".join([SENTENCES[-1]] * (WORDS_OF_THE_LONGEST // 10))
    longest_inputs = {
        name: tensor[:, :LONGEST_UNLIMITED] if _is_unlimited(tokenizer) else tensor
        for name, tensor in tokenizer([longest]).items()
    }
    return [dict(tokenizer(list(SENTENCES))), longest_inputs, dict(tokenizer([SENTENCES[0]]))]


def _is_unlimited(tokenizer: Any) -> bool:
    return getattr(tokenizer, "max_length", 0) is None


def _write(
    graph: nn.Module,
    trials: Sequence[Inputs],
    samples: Sequence[Inputs],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    folder: Path,
    what: str,
) -> Agreement:
    """Write the file and compare it, with the slower exporter where the faster one fails; what
    fails with both is removed."""
    path = folder / MODEL
    problem: UserError | None = None
    for exporter in OPSETS:
        try:
            write_graph(graph, trials[0], outputs, axes, path, what, exporter=exporter)
            return compare(graph, path, [*trials, *samples], what)
        except UserError as error:
            path.unlink(missing_ok=True)
            problem = problem or error
    assert problem is not None
    raise problem


def _axes(tower: Tower, trials: Sequence[Inputs], rows: str) -> dict[str, dict[int, str]]:
    """Names of the axes of a tower's inputs that may have any length."""
    axes = {}
    for name in trials[0]:
        axes[name] = {0: rows}
        if fixed_length(tower, trials) is None and name != IMAGES:
            axes[name][1] = "length"
    return axes


def fixed_length(tower: Tower, trials: Sequence[Inputs]) -> int | None:
    """The length that the tokenizer gives every text; None where texts differ, or for images."""
    if isinstance(tower.input, ImageInput):
        return None
    shortest = tokenizer_of(tower)(["a"])["input_ids"].shape[1]
    longest = trials[1]["input_ids"].shape[1]
    return int(longest) if shortest == longest else None


def _shapes(inputs: Inputs, axes: Mapping[str, Mapping[int, str]]) -> dict[str, list[int | str]]:
    return {
        name: [axes[name].get(number, size) for number, size in enumerate(tensor.shape)]
        for name, tensor in inputs.items()
    }


def _page(wanted: Wanted, agreement: Agreement) -> dict[str, object]:
    return {
        "format": "ONNX",
        "file": MODEL,
        "vlkd_version": vlkd_cli.__version__,
        **wanted.facts,
        "compared_with_the_tower": {
            "least_cosine": float(f"{agreement.cosine:.8f}"),
            "largest_difference": float(f"{agreement.difference:.3g}"),
            "rows": agreement.rows,
        },
    }


def _input_page(tower: Tower, folder: Path, trials: Sequence[Inputs]) -> dict[str, object]:
    """How inputs of a tower are prepared; writes its tokenizer."""
    if not isinstance(tower.input, ImageInput):
        length = fixed_length(tower, trials)
        return {"tokenizer": save_text_input(tokenizer_of(tower), folder, length)}
    prepared = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in tower.input._asdict().items()
    }
    return {"images": {**prepared, "inside_the_graph": "scaling to 0..1, mean and std"}}


def _finished(
    name: str,
    page: Mapping[str, Any],
    folder: Path,
    destination: Path,
    wanted: Wanted,
    towers: Sequence[Tower],
    what: str,
) -> ExportedTower:
    """Write metadata, the int8 copy and the page; returns their description."""
    facts = {
        "vlkd_version": vlkd_cli.__version__,
        **wanted.facts,
        "tower": name,
        "normalized": str(wanted.normalize).lower(),
        "tokenizer": str(page.get("tokenizer", "")),
        "preprocessing": json.dumps(page.get("images", {})),
    }
    add_metadata(folder / MODEL, facts)
    if wanted.int8:
        quantize(folder / MODEL, folder / INT8, what)
        add_metadata(folder / INT8, {**facts, "quantized": "dynamic int8"})
    text = yaml.safe_dump(dict(page), sort_keys=False, width=140)
    (folder / PAGE).write_text(text, encoding="utf-8")
    compared = page["compared_with_the_tower"]
    agreement = Agreement(
        compared["least_cosine"], compared["largest_difference"], compared["rows"]
    )
    how = Export(
        "ONNX",
        python=f"session = onnxruntime.InferenceSession({str(destination / MODEL)!r})",
        recipe={},
        feature=", ".join(page["outputs"]),
        note=f"compared with the tower: {agreement}.",
    )
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    num_parameters = sum(tower.count_parameters()[0] for tower in towers)
    return ExportedTower(name, how, files, num_parameters)
