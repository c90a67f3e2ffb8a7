"""What a finished run recommends next."""

from __future__ import annotations

import pytest

from vlkd_cli.engine.worker import _next_command
from vlkd_cli.recipe.load import parse_recipe

IMAGE = "image: {builder: timm, model: resnet10t, head: {name: linear, width: 8}}"
TEXT = "text: {builder: openclip, config: {layers: 1, width: 32, heads: 2, embed_dim: 8}}"


@pytest.mark.parametrize(
    ("towers", "rest", "command"),
    [
        ([IMAGE, TEXT], "data: {reader: shapes}", "eval run --suite retrieval"),
        ([IMAGE], "data: {reader: shapes}", "eval run --suite knn"),
        ([IMAGE, TEXT], "data: {reader: csv, path: pairs.csv}", "export run towers"),
        ([IMAGE], "data: {reader: shapes}\nevals: [{suite: knn}]", "eval run"),
        ([TEXT], "data: {reader: shapes}", "export run towers"),
    ],
)
def test_only_a_command_that_works_is_recommended(
    towers: list[str], rest: str, command: str
) -> None:
    text = "towers:\n" + "".join(f"  {tower}\n" for tower in towers) + rest
    assert _next_command(parse_recipe(text, "r.yaml"), "run") == command
