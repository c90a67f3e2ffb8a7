"""Files of right and wrong captions: their layouts are recognized, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlkd_cli.data.files.choices import Choice, read_choices
from vlkd_cli.errors import DataError


def test_lines_and_lists_are_read_alike(tmp_path: Path) -> None:
    items = [{"image": "a.png", "right": "x", "wrong": ["y", "z"], "group": n} for n in range(2)]
    (tmp_path / "a.json").write_text(json.dumps(items))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(item) for item in items) + "\n\n")
    found = read_choices(tmp_path / "a.json")
    assert found == read_choices(tmp_path / "a.jsonl")
    assert found.layout == "plain"
    assert found.items[1] == Choice("a.png", ("x",), ("y", "z"), "1")
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "right": "x", "wrong": "y"}\n{\n')
    with pytest.raises(DataError, match="a.jsonl:2: is not valid JSON"):
        read_choices(tmp_path / "a.jsonl")


BAD = [
    ("[]", "holds no items"),
    ("{", "is not valid JSON"),
    ("3", "is a number, not a list or an object of items"),
    ("[3]", r"item \[0\] is a number, not an object"),
    ('[{"image": "a.png", "right": "x"}]', r"has the keys image, right, and no layout"),
    ('[{"image": "a.png", "right": "x", "wrogn": ["y"]}]', r"Did you mean 'wrong'"),
    ('[{"image": "a.png", "right": "x", "wrong": []}]', r"item \[0\].wrong is empty"),
    ('[{"image": "a.png", "right": "x", "wrong": [7]}]', r"wrong\[0\] is a number, not text"),
    ('[{"image": "a.png", "right": " ", "wrong": "y"}]', r"item \[0\].right is empty"),
    (
        '[{"image": "a.png", "right": "x", "wrong": "y"}, {"image": "a.png", "right": "x"}]',
        r"item \[1\] has no 'wrong'",
    ),
    ('{"4": {"filename": "a.png", "caption": "x", "negative_caption": null}}', "'4'.*is null"),
    ('[{"image": "a.png", "caption_options": ["x"]}]', "has one caption"),
    ('[{"image": "a.png", "right": "x", "wrong": "y", "group": [1]}]', "group is a list"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_damaged_file_ends_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_choices(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
