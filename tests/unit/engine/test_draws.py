"""`cache: {draws: K}`: a run with stored teachers equals the run without storage, and the teacher
rests after K passes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.page_commands import leaves
from tests.unit.engine.recipes import (
    IMAGE,
    TEXT,
    differences,
    final_state,
    tiny_recipe,
    train,
    write_recipe,
)
from tests.unit.engine.test_processes import vlkd
from vlkd_cli.builders.openclip.towers import OpenClipImage
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.errors import DataError
from vlkd_cli.features.store import CHECKS, FeatureStore, is_done
from vlkd_cli.preprocessing import ImageInput, standardize
from vlkd_cli.reports.csv import read_metrics

SIDE_PX = 48
CONFIG = {"layers": 1, "width": 24, "heads": 2, "image_size": SIDE_PX, "patch_size": 16}
TEACHER = {"builder": "openclip", "train": "none"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures of each forward pass of the teacher."""
    seen: list[int] = []
    run = OpenClipImage.run

    def counted(self: OpenClipImage, inputs: Any, *, tokens: bool) -> Any:
        if inputs.device.type != "meta" and inputs.shape[-1] == SIDE_PX:
            seen.append(len(inputs))
        return run(self, inputs, tokens=tokens)

    monkeypatch.setattr(OpenClipImage, "run", counted)
    return seen


def recipe(draws: int = 2, store: bool = True, **sections: Any) -> dict[str, Any]:
    cache = {"draws": draws, "store": store}
    text = {**TEACHER, "config": {"layers": 1, "width": 24, "heads": 2}, "cache": cache}
    data = sections.pop("data", {})
    made = tiny_recipe(
        **{
            "towers": {
                "image": IMAGE,
                "text": TEXT,
                "teacher_image": {**TEACHER, "config": CONFIG, "cache": cache},
                "teacher_text": text,
            },
            "distillers": [{"name": "infonce"}, {"name": "interactive_contrast"}],
            "train": {"epochs": 5},
            **sections,
        }
    )
    made["data"] = {"workers": 0, **data}
    if "reader" not in data:
        made["data"] = {"reader": "shapes", "num_samples": 24, "size_px": 32, **made["data"]}
    return made


def jpegs(folder: Path, broken: int = 0) -> dict[str, Any]:
    """A table of noisy JPEG files, large enough that a decoder may scale them down."""
    lines = ["filepath\ttitle"]
    for number in range(24):
        noise = np.random.RandomState(number).randint(0, 255, (12, 16, 3)).astype(np.uint8)
        picture = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
        path = folder / f"{number}.jpg"
        picture.save(path, quality=95)
        if number < broken:
            path.write_bytes(path.read_bytes()[:400])
        lines += [f"{path.name}\tpicture {number}", f"{path.name}\tthe noise of {number}"]
    (folder / "data.tsv").write_text("\n".join(lines), encoding="utf-8")
    return {"reader": "csv", "path": str(folder / "data.tsv"), "max_broken_share": 0.2}


def trained_alike(folder: Path, stored: dict[str, Any], computed: dict[str, Any]) -> list[str]:
    """Where the final states of two runs are not equal bit for bit."""
    one, other = (
        final_state(train(folder, each, name))
        for each, name in ((stored, "stored"), (computed, "computed"))
    )
    parts = ("towers", "optimizer", "distillers")
    return differences({key: one[key] for key in parts}, {key: other[key] for key in parts})


def test_five_passes_with_two_stored_draws_equal_five_without(
    tmp_path: Path, pictures_seen: list[int]
) -> None:
    stored, computed = (recipe(store=store) for store in (True, False))
    first = final_state(train(tmp_path, stored, "stored"))
    assert sum(pictures_seen) == 2 * 24
    second = final_state(train(tmp_path, computed, "computed"))
    assert sum(pictures_seen) == (2 + 5) * 24
    for key in ("towers", "optimizer", "distillers"):
        assert differences(first[key], second[key]) == []


@pytest.mark.parametrize(
    "case",
    [
        "jpeg",
        "chunk",
        "two teachers",
        "layers",
        # These take as long and differ less.
        *(
            pytest.param(case, marks=pytest.mark.slow)
            for case in ("broken", "episodes", "copies", "another view", "workers", "distinct")
        ),
    ],
)
def test_stored_equals_computed_whatever_is_read(case: str, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "jpeg": {"data": jpegs(tmp_path)},
        "broken": {"data": jpegs(tmp_path, broken=2)},
        "episodes": {"data": {"episode_samples": 20}, "train": {"epochs": 6}},
        "copies": {"data": {"views": {"b": {"name": "simclr", "copies": 2}}}},
        "distinct": {"data": {"distinct": "caption"}},
        "chunk": {"train": {"epochs": 3, "chunk": 4}},
        "workers": {"data": {"workers": 2}},
    }.get(case, {})
    pair = [{"name": "infonce"}, {"name": "simreg", "student": "image", "teacher": "teacher_image"}]
    width = {"config": {**IMAGE["config"], "width": 24}}
    if case == "copies":
        pair[0]["student"] = pair[1]["student"] = "image@b.1"
        pair[1]["teacher"] = "teacher_image@b.2"
    if case == "another view":
        sections = {"data": {"views": {"b": {"name": "simclr", "size_px": 48}}}}
        pair[1]["teacher"] = "teacher_image@b"
    both = []
    for store in (True, False):
        one = recipe(**{"store": store, "train": {"epochs": 3}, **sections, "distillers": pair})
        one["towers"]["image"] = {**IMAGE, **width}
        one["towers"]["text"] = {**TEXT, "config": {**TEXT["config"], "width": 24}}
        if case == "layers":
            inner = {"student": "image.layers.1.pooled", "teacher": "teacher_image.layers.1.pooled"}
            own = {"student": "image.layers.1.pooled", "teacher": "teacher_image"}
            one["distillers"] = [pair[0], {"name": "layer_distance", **inner}]
            one["distillers"] += [{"name": "simreg", **own}]
        if case == "two teachers":
            second = {**TEACHER, "config": {**CONFIG, "layers": 2}}
            one["towers"]["second_image"] = {**second, "cache": {"draws": 2, "store": store}}
            one["distillers"] = [*pair, {**pair[1], "teacher": "second_image"}]
        both.append(one)
    assert trained_alike(tmp_path, *both) == []


@pytest.mark.slow
def test_captions_of_several_sources_are_stored_each(tmp_path: Path) -> None:
    data = {**jpegs(tmp_path), "path": str(tmp_path / "sources.tsv")}
    lines = ["filepath\traw\tlong"]
    for number in range(24):
        long = f"a long text about {number}" if number % 3 else ""
        lines.append(f"{number}.jpg\tpicture {number}\t{long}")
    (tmp_path / "sources.tsv").write_text("\n".join(lines), encoding="utf-8")
    data |= {"caption": ["raw", "long"], "caption_weights": [1, 2]}
    both = [recipe(store=store, data=data, train={"epochs": 5}) for store in (True, False)]
    assert trained_alike(tmp_path, *both) == []


def seed_by_hand(*keys: int) -> int:
    """Splitmix64 over the keys, halved."""

    def mixed(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    result = 0
    for key in keys:
        result = mixed(result ^ mixed(key))
    return result >> 1


def cropped_by_hand(pixels: np.ndarray, seed: int, side_px: int) -> torch.Tensor:
    """Inception crop of 0.3 to 1 of the area, a flip with probability 0.5, CLIP's statistics."""
    rng, (height, width) = random.Random(seed * 1_000_003), pixels.shape[:2]
    while True:
        area = height * width * rng.uniform(0.3, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if w <= width and h <= height:
            break
    top, left = rng.randint(0, height - h), rng.randint(0, width - w)
    cut = torch.from_numpy(pixels[top : top + h, left : left + w].copy()).permute(2, 0, 1)[None]
    image = torch.nn.functional.interpolate(cut, (side_px, side_px), mode="bicubic", antialias=True)
    return standardize(image.flip(-1) if rng.random() < 0.5 else image, ImageInput())[0]


def test_a_stored_row_is_the_feature_of_the_crop_and_flip_that_row_and_draw_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    run = OpenClipImage.run

    def recorded(self: OpenClipImage, inputs: torch.Tensor, *, tokens: bool) -> Any:
        found = run(self, inputs, tokens=tokens)
        if inputs.device.type != "meta" and len(inputs) == 8:
            seen.append((inputs.clone(), found.feature.detach().clone()))
        return found

    monkeypatch.setattr(OpenClipImage, "run", recorded)
    augment = {"name": "standard", "scale": [0.3, 1.0], "flip": 0.5}
    made = recipe(data={"num_samples": 8, "augment": augment}, train={"epochs": 3})
    for name in ("teacher_image", "teacher_text"):
        made["towers"][name]["cache"] = {"draws": 2, "seed": 5}
    train(tmp_path, made)
    reader = Shapes(num_samples=8, size_px=32)
    pictures = [np.array(reader.image(row)) for row in range(8)]

    def expected(draw: int, side_px: int) -> list[torch.Tensor]:
        seeds = [seed_by_hand(5, draw, row, 2) for row in range(8)]
        return [cropped_by_hand(*each, side_px) for each in zip(pictures, seeds, strict=True)]

    def position(picture: torch.Tensor, batch: torch.Tensor) -> int:
        (found,) = [at for at, own in enumerate(batch) if own.equal(picture)]
        return found

    student = [images for images, _ in seen if images.shape[-1] == 32]
    teacher = [each for each in seen if each[0].shape[-1] == SIDE_PX]
    assert (len(student), len(teacher)) == (3, 2)
    for step, images in enumerate(student):
        assert len({position(each, images) for each in expected(step % 2, 32)}) == 8
    for checks in (tmp_path / "cache" / "train_features").glob("*/about.json"):
        about = json.loads(checks.read_text(encoding="utf-8"))
        if about["tower"] != "teacher_image":
            continue
        images, features = teacher[about["draw"]]
        order = [position(each, images) for each in expected(about["draw"], SIDE_PX)]
        table = torch.from_numpy(np.load(checks.with_name("features.npy")))
        assert table.equal(features[order])


def test_what_is_stored_as_bfloat16_is_rounded_in_the_first_pass_too(
    tmp_path: Path, pictures_seen: list[int]
) -> None:
    rounded = recipe(draws=1, train={"epochs": 2})
    for name in ("teacher_image", "teacher_text"):
        rounded["towers"][name]["cache"] = {"draws": 1, "dtype": "bfloat16"}
    filled, read = (final_state(train(tmp_path, rounded, name)) for name in ("filled", "read"))
    assert differences(filled["towers"], read["towers"]) == [] and sum(pictures_seen) == 24
    found = [np.load(path) for path in (tmp_path / "cache").rglob("features.npy")]
    assert len(found) == 2 and {table.dtype for table in found} == {np.dtype(np.uint16)}
    whole = final_state(train(tmp_path, recipe(draws=1, train={"epochs": 2}), "whole"))
    assert differences(whole["towers"], read["towers"]) != []


def test_rows_that_do_not_fill_a_step_are_stored_after_their_pass(
    tmp_path: Path, pictures_seen: list[int]
) -> None:
    train(tmp_path, recipe(draws=1, data={"num_samples": 20}))
    assert pictures_seen == [8, 8, 8]  # the third with four rows of padding


def test_broken_files_do_not_keep_the_teacher_running(
    tmp_path: Path, pictures_seen: list[int]
) -> None:
    train(tmp_path, recipe(draws=1, data=jpegs(tmp_path, broken=2)))
    # In the second pass, what took the place of a broken file may be new to the tables.
    assert sum(pictures_seen) <= 2 * 24


def test_runs_of_other_seeds_and_more_draws_share_what_is_stored(
    tmp_path: Path, pictures_seen: list[int]
) -> None:
    train(tmp_path, recipe(draws=1, train={"epochs": 1}))
    train(tmp_path, recipe(draws=1, train={"epochs": 1, "seed": 7}), "seed")
    # Towers are built from the run's seed, so the second run has another teacher.
    assert sum(pictures_seen) == 2 * 24
    train(tmp_path, recipe(draws=2, train={"epochs": 2}), "grown")
    assert sum(pictures_seen) == 3 * 24


def test_rows_that_a_kill_left_undone_or_torn_are_computed_again(
    tmp_path: Path, pictures_seen: list[int]
) -> None:
    whole = final_state(train(tmp_path, recipe(draws=1), "whole"))
    tables = sorted((tmp_path / "cache" / "train_features").glob("*/features.npy"))
    table = next(path for path in tables if np.load(path, mmap_mode="r").shape == (24, 24))
    checks = np.load(table.with_name(CHECKS), mmap_mode="r+")
    checks[8:16] = 0  # never written
    checks.flush()
    values = np.load(table, mmap_mode="r+")
    values[3] = 0  # marked, but the values did not reach the disk
    values.flush()
    before = sum(pictures_seen)
    again = final_state(train(tmp_path, recipe(draws=1), "again"))
    assert differences(whole["towers"], again["towers"]) == []
    assert before < sum(pictures_seen) <= before + 24
    assert is_done(np.load(table.with_name(CHECKS))).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_fill_one_table(tmp_path: Path) -> None:
    import yaml

    for store in (True, False):
        path = tmp_path / f"{store}.yaml"
        path.write_text(yaml.safe_dump(recipe(store=store, train={"epochs": 3})), encoding="utf-8")
        code, _, err = vlkd(
            tmp_path, "train", str(path), "--cpu-workers", "2", "--run", str(store), "--quiet"
        )
        assert code == 0, err
    one, other = (final_state(tmp_path / str(store))["towers"] for store in (True, False))
    assert differences(one, other) == []
    for checks in (tmp_path / "cache" / "train_features").glob("*/checks.npy"):
        assert is_done(np.load(checks)).all()


def test_a_full_disk_is_reported_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"towers\.teacher_image\.cache: 2 tables of features need"):
        train(tmp_path, recipe())


def test_a_table_is_a_feature_store(tmp_path: Path) -> None:
    run = train(tmp_path, recipe(draws=1, train={"epochs": 1}))
    assert read_metrics(run)["train/loss"]
    for folder in (tmp_path / "cache" / "train_features").iterdir():
        width = np.load(folder / "features.npy", mmap_mode="r").shape
        assert FeatureStore(folder, *width).done.all()


def test_tables_filled_ahead_and_imported_elsewhere_keep_the_teacher_from_running(
    tmp_path: Path, pictures_seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, recipe(data={"num_samples": 20}))
    assert leaves(["cache", "fill", path]) == 0
    assert sum(pictures_seen) == 2 * 24  # in batches of eight, the last one padded
    assert leaves(["cache", "fill", path]) == 0
    assert leaves(["cache", "list"]) == 0
    assert leaves(["cache", "export", str(tmp_path / "tables.tar")]) == 0
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "elsewhere"))
    assert leaves(["cache", "import", str(tmp_path / "tables.tar")]) == 0
    train(tmp_path, recipe(data={"num_samples": 20}))
    assert sum(pictures_seen) == 2 * 24
    assert leaves(["cache", "prune", "--unused-for", "0"]) == 0
    assert not list((tmp_path / "elsewhere" / "train_features").iterdir())


def test_filling_ahead_without_draws_is_one_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, tiny_recipe())
    assert leaves(["cache", "fill", path]) == 2
