"""The cells of a sweep: their order, values, and folder names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vlkd_cli.engine.launching.sweep_cells import sweep_cells
from vlkd_cli.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "many_runs.json").read_text())


def test_grids_multiply_with_the_folders_of_the_specification() -> None:
    case = GOLDEN["grid"]
    cells = sweep_cells(case["options"], seeds=case["seeds"])
    assert [{"index": c.index, "folder": c.folder} for c in cells] == case["cells"]
    assert cells[6].overrides == [
        "distillers[0].name=rkd",
        "optimizer.lr=3e-4",
        "train.seed=0",
    ]


def sampled(num_random: int) -> list[dict[str, object]]:
    case = GOLDEN["random_search"]
    words = []
    for key, kind, *bounds in case["keys"]:
        values = bounds[0] if kind == "choice" else bounds
        text = ",".join(map(str, values))
        words.append(f"{key}=choice[{text}]" if kind == "choice" else f"{key}={kind}({text})")
    cells = sweep_cells([], words, num_random=num_random, search_seed=case["search_seed"])
    return [
        {
            key: yaml.safe_load(text)
            for key, _, text in (each.partition("=") for each in cell.overrides[:-1])
        }
        for cell in cells
    ]


def test_random_values_are_those_of_the_specification_and_more_of_them_append() -> None:
    expected = GOLDEN["random_search"]["cells"]
    found = sampled(len(expected))
    for own, wanted in zip(found, expected, strict=True):
        assert own.keys() == wanted.keys()
        for key, value in wanted.items():
            assert own[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9))
    assert sampled(2) == found[:2]


def test_random_values_combine_with_every_grid_cell_and_seed() -> None:
    cells = sweep_cells(["a.b=[1,2]"], ["c=uniform(0,1)"], num_random=3, seeds=(0, 5))
    assert len(cells) == 12
    first = [cell.overrides for cell in cells[:4]]
    assert [each[0] for each in first] == ["a.b=1", "a.b=1", "a.b=2", "a.b=2"]
    assert [each[2] for each in first] == ["train.seed=0", "train.seed=5"] * 2
    assert len({each[1] for each in first}) == 1


def test_a_name_takes_the_shortest_suffix_that_no_other_key_has() -> None:
    cells = sweep_cells(
        ["distillers[0].name=[a,b]", "distillers[1].name=[c,d]", "optimizer.lr=[1]"], seeds=(3,)
    )
    assert cells[0].folder == "000-distillers_0_.name=a-distillers_1_.name=c-seed=3"
    assert cells[0].overrides[2] == "optimizer.lr=1"


def test_mappings_are_named_by_their_name_and_long_names_are_cut() -> None:
    cells = sweep_cells(["distillers[0]=[{name: rkd, weight: 2}, {name: seed}]"])
    assert [cell.folder for cell in cells] == [
        "000-distillers_0_=rkd-seed=0",
        "001-distillers_0_=seed-seed=0",
    ]
    assert cells[0].overrides[0] == "distillers[0]={name: rkd, weight: 2}"
    (first, second) = sweep_cells([f"data.path=[{'x' * 200}, {'x' * 200}y]"])
    assert len(first.folder) == len(second.folder) == 120 and first.folder[4:] != second.folder[4:]
    assert sweep_cells(["data.path=['a b/c', d]"])[0].folder == "000-path=a_b_c-seed=0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"grids": ["optimizer.lr"]}, "--grid optimizer.lr: write KEY=VALUES"),
        ({"grids": ["optimizer.lr=3"]}, "write a list of values"),
        ({"grids": ["optimizer.lr=[]"]}, "write a list of values"),
        ({"grids": ["optimizer.lr=[1"]}, "write a list of values"),
        ({"grids": ["a=[1,2]", "a=[3]"]}, "'a' is given twice"),
        ({"grids": ["a[0].b=[1,2]", "a.0.b=[3]"]}, "'a[0].b' is given twice"),
        (
            {"grids": ["optimizer.lr=[1,2]", "optimizer=[{name: sgd}, {name: adamw}]"]},
            "'optimizer.lr' has no effect: 'optimizer', which is given after it, replaces it.",
        ),
        (
            {"grids": ["a[0]=[{b: {c: 1}}, {b: 3}]"], "draws": ["a[0].b.c=int(1,9)"]}
            | {"num_random": 2},
            "--grid a[0]={b: {c: 1}}: its value of 'a[0].b.c' has no effect: that key has",
        ),
        ({"grids": ["train.seed=[1,2]"]}, "train.seed is what --seeds is for"),
        ({"grids": ["a=[1,2,1]"]}, "cells 0 and 2 are equal"),
        ({"grids": ["a=[1e-1,0.1]"]}, "cells 0 and 1 are equal"),
        ({"draws": ["a=log(1,2)"]}, "--random N and --draw"),
        ({"num_random": 3}, "--random N and --draw"),
        ({"draws": ["a=log(1,2)"], "num_random": 10**9, "seeds": (0, 1)}, "2,000,000,000 cells"),
        ({"draws": ["a=log(0,2)"], "num_random": 1}, "needs 0 < a < b"),
        ({"draws": ["a=uniform(2,1)"], "num_random": 1}, "needs a < b"),
        ({"draws": ["a=uniform(0,inf)"], "num_random": 1}, "needs a < b"),
        ({"draws": ["a=int(0.5,2)"], "num_random": 1}, "needs integers"),
        ({"draws": ["a=normal(0,2)"], "num_random": 1}, "write KEY=log(a,b), uniform"),
        ({"draws": ["a=log(x,2)"], "num_random": 1}, "write KEY=log(a,b), uniform"),
        ({"draws": ["a=choice[]"], "num_random": 1}, "write a list of values"),
        ({"grids": ["a=[1]"], "seeds": (1, 1)}, "--seeds 1,1: give different numbers"),
    ],
)
def test_mistakes_end_in_one_line(words: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep_cells(**{"grids": [], **words})  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_may_be_added_to_mappings_that_lack_it() -> None:
    cells = sweep_cells(["a=[{n: 1}, {n: 2}]", "a.w=[1,2]"])
    assert cells[1].overrides == ["a={n: 1}", "a.w=2", "train.seed=0"]


def test_both_ends_of_int_are_reached() -> None:
    cells = sweep_cells([], ["a=int(1,3)", "b=uniform(0,1)"], num_random=12, seeds=(0,))
    assert {cell.overrides[0] for cell in cells} == {"a=1", "a=2", "a=3"}
