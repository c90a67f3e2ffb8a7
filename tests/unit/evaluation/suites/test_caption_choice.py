"""Suite caption_choice on files in the layouts of SugarCrepe, ARO and Winoground."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.fakes import FakeTower, color_of
from vlkd_cli.data.readers.choices import Choices
from vlkd_cli.errors import DataError, RecipeError, UserError
from vlkd_cli.evaluation.datasets.choice_sets import choice_sets
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec


def angle(degrees: float) -> Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()])


def by_number(root: Path | None = None, of_pictures: float = 10.0) -> Subject:
    """Picture n is at 10 n degrees, a caption at the degrees that it ends with."""
    return Subject(
        FakeTower("image", lambda position: angle(of_pictures * position), 2),
        FakeTower("text", lambda text: angle(float(text.split()[-1])), 2),
        data_root=root,
    )


def pictures(folder: Path, names: list[str]) -> list[str]:
    """Pictures 0, 1, 2, ... with these names."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color_of(number)).save(path)
    return names


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def measured(subject: Subject, data: Any = None, **keys: Any) -> list[Result]:
    given = {"suite": "caption_choice", **keys} | ({} if data is None else {"data": data})
    return run_suites(subject, [EvalSpec.model_validate(given)])


def sugar(folder: Path, name: str, wrong: list[float]) -> Path:
    """Items whose right caption is 2 degrees from the picture, the wrong one as far as given."""
    pictures(folder / "val2017", [f"{n}.png" for n in range(len(wrong))])
    items = {
        str(7 * n): {
            "filename": f"{n}.png",
            "caption": f"at {10 * n + 2}",
            "negative_caption": f"at {10 * n + far}",
        }
        for n, far in enumerate(wrong)
    }
    return written(folder / f"{name}.json", items)


def test_a_sugar_crepe_file_is_measured_and_a_tie_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sugar(tmp_path, "add_att", [5, 1, 2, 30])
    (result,) = measured(by_number(), {"reader": "choices", "path": str(path)})
    assert result.protocol == "sugar_crepe" and result.dataset == "add_att"
    assert (result.metrics["accuracy"], result.chance["accuracy"]) == (0.5, 0.5)
    assert (result.details["ties"], result.num_items) == (1, 4)
    assert "add_att: 4 items, 1 wrong by a tie alone" in capsys.readouterr().out
    assert result.items is not None
    assert np.unpackbits(result.items["right"], count=4).tolist() == [1, 0, 0, 1]


def test_a_folder_of_files_gives_each_their_mean_and_all_items(tmp_path: Path) -> None:
    sugar(tmp_path / "sugar_crepe", "add_att", [5, 1, 1, 1])
    sugar(tmp_path / "sugar_crepe", "swap_obj", [5, 5])
    found = measured(by_number(tmp_path), "sugar_crepe")
    assert [result.dataset for result in found] == [
        "sugar_crepe/add_att",
        "sugar_crepe/swap_obj",
        "sugar_crepe",
    ]
    assert found[2].metrics == {"mean_accuracy": 0.625, "micro_accuracy": 0.5}
    assert found[2].details["items"] == {"sugar_crepe/add_att": 4, "sugar_crepe/swap_obj": 2}
    (one,) = measured(by_number(tmp_path), "sugar_crepe/swap_obj")
    assert one.metrics["accuracy"] == 1 and one.key == found[1].key
    assert len(choice_sets(by_number(tmp_path / "sugar_crepe"), None)) == 2
    # As the repository of SugarCrepe has them, with the images in a folder next to `data`.
    (tmp_path / "sugar_crepe" / "data").mkdir()
    for file in (tmp_path / "sugar_crepe").glob("*.json"):
        file.rename(tmp_path / "sugar_crepe" / "data" / file.name)
    again = measured(by_number(tmp_path), "sugar_crepe")
    assert [(each.dataset, each.key) for each in again] == [(e.dataset, e.key) for e in found]


def test_aro_crops_to_the_box_and_averages_over_relations(tmp_path: Path) -> None:
    # The left half of the picture is number 0, the right half number 3.
    picture = Image.new("RGB", (16, 8), color_of(0))
    picture.paste(color_of(3), (8, 0, 16, 8))
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.png")

    def item(relation: str, left: int, right: float, wrong: float) -> dict[str, Any]:
        box = {"bbox_x": left, "bbox_y": 0, "bbox_w": 8, "bbox_h": 8}
        captions = {"true_caption": f"at {right}", "false_caption": f"at {wrong}"}
        return {"image_path": "a.png", "relation_name": relation, **box, **captions}

    items = [
        item("on", 0, 0, 30),
        item("on", 8, 0, 30),
        item("under", 8, 30, 0),
        item("next to", 0, 30, 0),
    ]
    path = written(tmp_path / "visual_genome_relation.json", items)
    (result,) = measured(by_number(), {"reader": "choices", "path": str(path)})
    # next to is symmetric: the mean is over on (one half) and under (one).
    assert result.primary_metric == "macro_accuracy"
    assert result.metrics["macro_accuracy"] == 0.75
    assert result.metrics["accuracy"] == 0.5
    shares = {row["group"]: row["share"] for row in result.details["groups"]}
    assert shares == {"on": 0.5, "under": 1.0, "next to": 0.0}
    assert "worst_group" not in result.metrics
    (smaller,) = measured(by_number(), {"reader": "choices", "path": str(path)}, min_group=1)
    assert smaller.metrics["worst_group"] == 0


def test_pairs_of_attributes_count_from_25_items_where_any_has_as_many(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 8, "bbox_h": 8, "image_path": "a.png"}
    right = {"true_caption": "at 0", "false_caption": "at 9", "attributes": ["red", "round"], **box}
    wrong = {"true_caption": "at 9", "false_caption": "at 0", "attributes": ["old", "wet"], **box}
    few = written(tmp_path / "few.json", [right, wrong, wrong])
    many = written(tmp_path / "many.json", [right] * 25 + [wrong] * 24)
    for path, macro in ((few, 0.5), (many, 1.0)):
        (result,) = measured(by_number(), {"reader": "choices", "path": str(path)})
        assert result.protocol == "vg_attribution"
        assert result.metrics["macro_accuracy"] == macro


def test_orders_of_words_encode_a_shared_picture_once(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    near, far = [f"at {n}" for n in (1, 5, 6, 7, 8)], [f"at {n}" for n in (11, 10, 6, 7, 8)]
    items = [
        {"image": "a.png", "caption_options": near},
        {"image": "a.png", "caption_options": near[::-1]},
        {"image": "b.png", "caption_options": far},
    ]
    path = written(tmp_path / "coco_order.json", items)
    subject = by_number()
    (result,) = measured(subject, {"reader": "choices", "path": str(path)})
    assert result.metrics["accuracy"] == pytest.approx(1 / 3)
    assert result.chance["accuracy"] == pytest.approx(0.2)
    assert isinstance(subject.image, FakeTower) and subject.image.encoded == 2


def test_winoground_gives_text_image_and_group_scores(tmp_path: Path) -> None:
    folder = tmp_path / "winoground"
    pictures(folder / "images", [f"ex_{n}_img_{k}.png" for n in range(2) for k in range(2)])
    lines = [
        # Pictures at 0 and 10 degrees: both prefer their own captions, and are preferred.
        {
            "caption_0": "at 1",
            "caption_1": "at 9",
            "image_0": "ex_0_img_0",
            "image_1": "ex_0_img_1",
        },
        # At 20 and 30: the captions prefer their pictures; picture 20 prefers caption 28.
        {
            "caption_0": "at 10",
            "caption_1": "at 28",
            "image_0": "ex_1_img_0",
            "image_1": "ex_1_img_1",
        },
    ]
    (folder / "examples.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (result,) = measured(by_number(tmp_path), "winoground")
    assert result.metrics == {"text_score": 0.5, "image_score": 1.0, "group_score": 0.5}
    assert result.num_items == 2 and result.primary_metric == "group_score"


def test_it_equals_clip_benchmark_where_no_scores_tie(tmp_path: Path) -> None:
    from clip_benchmark.metrics.image_caption_selection import evaluate

    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.standard_normal((12, 6, 4))).float()
    names = pictures(tmp_path, [f"{n}.png" for n in range(12)])
    items = [
        {"image": name, "right": f"{n} 0", "wrong": [f"{n} {k}" for k in range(1, 5)]}
        for n, name in enumerate(names)
    ]
    path = written(tmp_path / "items.json", items)

    def of_text(text: str) -> Tensor:
        item, caption = map(int, text.split())
        return features[item, 1 + caption]

    subject = Subject(
        FakeTower("image", lambda position: features[position, 0], 4), FakeTower("text", of_text, 4)
    )
    (result,) = measured(subject, {"reader": "choices", "path": str(path)})

    class Model:
        def encode_image(self, images: Tensor) -> Tensor:
            return features[images[:, 0, 0, 0].long(), 0]

        def encode_text(self, tokens: Tensor) -> Tensor:
            return features[tokens[:, 0], 1 + tokens[:, 1]]

    batch = torch.arange(12.0).view(12, 1, 1, 1)
    texts = [[f"{n} {k}" for k in range(5)] for n in range(12)]

    def tokens(flat: list[str]) -> Tensor:
        return torch.tensor([[int(part) for part in text.split()] for text in flat])

    theirs = evaluate(Model(), [(batch, texts)], tokens, "cpu", amp=False)
    assert result.metrics["accuracy"] == pytest.approx(theirs["text_acc"])
    assert 0 < theirs["text_acc"] < 1


def test_several_right_captions_need_all_or_any(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    items = [{"image": "a.png", "right": ["at 1", "at 9"], "wrong": ["at 5"], "group": 3}]
    keys = {"reader": "choices", "path": str(written(tmp_path / "a.json", items))}
    (all_,), (any_,) = measured(by_number(), keys), measured(by_number(), keys, right="any")
    assert (all_.metrics["accuracy"], all_.chance["accuracy"]) == (0, pytest.approx(1 / 3))
    assert (any_.metrics["accuracy"], any_.chance["accuracy"]) == (1, pytest.approx(2 / 3))
    assert all_.key != any_.key


def test_an_empty_box_and_other_data_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    item = {"image_path": "a.png", "true_caption": "x", "false_caption": "y", "relation_name": "on"}
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 0, "bbox_h": 4}
    path = written(tmp_path / "a.json", [{**item, **box}])
    with pytest.raises(DataError, match="its box of 0 x 4 pixels is empty"):
        Choices(path=str(path))
    with pytest.raises(DataError, match="has no wrong captions"):
        measured(by_number(), {"reader": "shapes", "num_samples": 4})
    gone = [{"image": "b.png", "right": "x", "wrong": "y"}]
    with pytest.raises(DataError, match="its first images do not exist"):
        Choices(path=str(written(tmp_path / "gone.json", gone)))
    plain = sugar(tmp_path, "plain", [5])
    with pytest.raises(RecipeError, match="min_group has no effect"):
        measured(by_number(), {"reader": "choices", "path": str(plain)}, min_group=3)
    with pytest.raises(UserError, match="not under"):
        measured(by_number(tmp_path), "sugar_crepe/nothing")
