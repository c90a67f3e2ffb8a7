from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.text_folders import perfect_subject, random_subject, write_captioned
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.caption_table import CaptionTable
from vlkd_cli.evaluation.suites.captioned import Captioned


def test_captions_that_tell_the_class_score_one_and_others_chance(tmp_path: Path) -> None:
    suite = Captioned(data=str(write_captioned(tmp_path, items=90)))
    (perfect,) = suite.run(perfect_subject())
    assert (
        perfect.metrics["accuracy"],
        perfect.split,
        perfect.num_items,
        perfect.num_classes,
    ) == (1, "test", 90, 3)
    (random,) = suite.run(random_subject())
    assert abs(random.metrics["accuracy"] - random.chance["accuracy"]) < 0.2 and random.chance[
        "accuracy"
    ] == pytest.approx(1 / 3)


def test_a_labeled_reader_serves_as_well() -> None:
    data = {"reader": "shapes", "split": "val", "num_samples": 120}
    (result,) = Captioned(data=data, captions="first", C=1.0).run(random_subject())
    assert (result.dataset, result.split, result.num_items) == ("shapes", "val", 120)


def test_the_same_captions_to_learn_from_and_to_judge_are_refused(tmp_path: Path) -> None:
    root = write_captioned(tmp_path)
    (root / "train.csv").write_bytes((root / "test.csv").read_bytes())
    with pytest.raises(DataError, match="hold the same captions"):
        Captioned(data=str(root)).run(perfect_subject())


def test_tables_are_found_below_the_data_root_and_missing_ones_named(tmp_path: Path) -> None:
    root = write_captioned(tmp_path / "captioned")
    assert Captioned(C=2.5).run(perfect_subject(data_root=tmp_path))[0].settings["C"] == 2.5
    (root / "test.csv").unlink()
    with pytest.raises(DataError, match=r"lacks test\.csv or test\.tsv or val\.csv"):
        Captioned().run(perfect_subject(data_root=tmp_path))
    with pytest.raises(RecipeError, match="'train_data' has no effect"):
        Captioned(data="x", train_data={"reader": "shapes"})


def test_missing_columns_and_labels_are_reported(tmp_path: Path) -> None:
    root = write_captioned(tmp_path)
    (root / "test.csv").write_text("caption,label\na dog,17\n")
    with pytest.raises(DataError, match="label '17' does not occur"):
        Captioned(data=str(root)).run(perfect_subject())
    (root / "test.csv").write_text("words,label\na dog,1\n")
    with pytest.raises(
        DataError, match="no column is named caption or title or text; there are words, label"
    ):
        Captioned(data=str(root)).run(perfect_subject())


def test_captions_of_one_class_and_damaged_tables_are_refused(tmp_path: Path) -> None:
    root = write_captioned(tmp_path)
    (root / "train.csv").write_text("caption,label\n" + "".join(f"a dog {i},1\n" for i in range(9)))
    (root / "test.csv").write_text("caption,label\na cat,1\n")
    with pytest.raises(DataError, match="the training captions are all of one class"):
        Captioned(data=str(root), C=1.0).run(perfect_subject())
    (root / "train.csv").write_text('caption,label\n"a dog,1\n')
    with pytest.raises(DataError, match=r"train\.csv: cannot be read: a quoted field does not end"):
        Captioned(data=str(root)).run(perfect_subject())


def test_long_fields_separators_and_marks_in_a_table_are_read(tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    rows = [f'"{"a" * 200_000}",1', "\ufefffirst\u2028second,0", '"two\nlines, ""quoted""",1']
    table.write_bytes(("\ufeffcaption,label\n" + "\r\n\n".join(rows)).encode())
    reader = CaptionTable(table)
    assert [reader.captions(k)[0] for k in range(3)] == [
        *("a" * 200_000, "first\u2028second", 'two\nlines, "quoted"')
    ]
    assert [reader.label(k) for k in range(3)] == [1, 0, 1]
