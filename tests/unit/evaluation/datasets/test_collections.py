"""Which data sets the words of `--datasets` mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_cli.errors import UserError
from vlkd_cli.evaluation.datasets.collections import (
    Entry,
    absent,
    collections,
    entries_of,
    groups_of,
)


def test_the_collections_are_those_of_their_sources() -> None:
    sizes = {name: len(sets) for name, sets in collections().items()}
    assert sizes == {
        "elevater": 20,
        "vtab": 19,
        "imagenet_robustness": 5,
        "retrieval": 3,
        "sugar_crepe": 7,
        "aro": 4,
        "xtd10": 11,
        "crossmodal3600": 36,
    }
    assert all(len(set(sets)) == len(sets) for sets in collections().values())


def test_words_are_names_collections_and_lists_each_set_once(tmp_path: Path) -> None:
    (tmp_path / "lists.yaml").write_text(
        "mine:\n- pets\n- {reader: shapes, name: rendered}\n- {dataset: dtd, split: val, name: d}\n"
    )
    found = entries_of(["retrieval", f"{tmp_path}/lists.yaml:mine", "flickr8k"], None)
    assert [(entry.name, entry.is_listed) for entry in found] == [
        ("coco2014_karpathy5k", False),
        ("flickr8k", True),
        ("flickr30k", False),
        ("pets", True),
        ("rendered", True),
        ("d", True),
    ]
    assert found[4].keys == {"reader": "shapes", "name": "rendered"}


def test_vtab_is_found_in_clip_benchmarks_copies(tmp_path: Path) -> None:
    copies = {
        "caltech101": "vtab-caltech101",
        "flowers102": "vtab-flowers",
        "kitti_distance": "vtab-kitti_closest_vehicle_distance",
    }
    for copy in copies.values():
        (tmp_path / f"wds_{copy}").mkdir()
        (tmp_path / f"wds_{copy}" / "classnames.txt").write_text("a\n")
    found = {entry.name: entry for entry in entries_of(["vtab"], tmp_path)}
    assert {name: found[name].keys for name in copies} == {
        name: {"dataset": copy} for name, copy in copies.items()
    }
    gone = {entry.name for entry in absent(list(found.values()), tmp_path)}
    assert len(gone) == 16 and not gone & set(copies)


@pytest.mark.parametrize(
    ("word", "content", "message"),
    [
        ("FILE:x", "mine: [pets]", r"has no list 'x'. It has: mine."),
        ("FILE:mien", "mine: [pets]", r"Did you mean 'mine'"),
        ("FILE:mine", "mine: [{split: val}]", r"lists.yaml:1: entry 1 of 'mine' is neither"),
        ("FILE:mine", "mine:\n- [1", r"lists.yaml:2: not valid YAML"),
        ("FILE:x", "2024: [pets]\nmine: pets", r"has no list 'x'.* It has: 2024, mine."),
        ("FILE:mine", "2024: [pets]\nmine: pets", r"lists.yaml:2: 'mine' is not a list. Write"),
        ("FILE:mine", "- pets", r"It has: none."),
        (
            "FILE:mine",
            "mine: [pets, {reader: shapes, name: pets}]",
            r"two different data sets are called 'pets'",
        ),
        ("all", "", r"--datasets all: needs --data"),
    ],
)
def test_lists_that_mean_nothing_end_in_one_line(
    tmp_path: Path, word: str, content: str, message: str
) -> None:
    path = tmp_path / "lists.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        entries_of([word.replace("FILE", str(path))], None)


def test_a_reader_is_never_absent(tmp_path: Path) -> None:
    entries = [Entry("a", {"reader": "csv", "path": "x"}), Entry("b", {"dataset": "b"})]
    assert absent(entries, tmp_path) == [entries[1]]


def test_collections_have_means_and_vtab_one_for_each_kind_of_set() -> None:
    vtab = {group.name: group.datasets for group in groups_of(["vtab", "pets", "vtab"])}
    assert {name: len(own) for name, own in vtab.items()} == {
        "vtab.natural": 7,
        "vtab.specialized": 4,
        "vtab.structured": 8,
        "vtab": 19,
    }
    parts = [name for group in list(vtab)[:3] for name in vtab[group]]
    assert sorted(parts) == sorted(collections()["vtab"])
    sugar = groups_of(["sugar_crepe"])
    assert [(group.name, group.by_items) for group in sugar] == [
        ("sugar_crepe", False),
        ("sugar_crepe.all_items", True),
    ]
    assert groups_of(["all", "lists.yaml:mine"]) == []
