"""The table is a pure function of result files; what is not comparable is never averaged."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from vlkd_cli.evaluation.datasets.collections import Group
from vlkd_cli.reports.table import Cell, Table, find_result, make_table
from vlkd_cli.reports.table_files import write_table

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "many_runs.json").read_text())


def cell(folder: Path, target: str, dataset: str, number: int, **result: Any) -> Cell:
    """A cell with its result file; without values it has none."""
    key = f"{number:012x}"
    if result:
        content = {"primary_metric": next(iter(result["metrics"])), "hashes": {}, **result}
        (folder / f"s-{dataset}-test-p-{key}.json").write_text(json.dumps(content))
    return Cell(0, target, number % 7, dataset, 0, "s", key, str(folder), f"{folder}/{key}.f.json")


def golden_cells(folder: Path) -> list[Cell]:
    (case,) = GOLDEN["aggregation"]
    cells = []
    for row, target in enumerate(case["targets"]):
        for column, name in enumerate(case["columns"]):
            dataset, metric = name.split("/")
            value, chance = case["values"][row][column], case["chance"][column]
            found = {"metrics": {metric: value}, "chance": {metric: chance}}
            number = 7 * row + column
            cells.append(cell(folder, target, dataset, number, **(found if value else {})))
    return cells


def test_averages_are_those_of_the_specification(tmp_path: Path) -> None:
    (case,) = GOLDEN["aggregation"]
    table = make_table(golden_cells(tmp_path))
    assert table.names == ["s.a.top1", "s.b.top1", "s.c.mean_recall", "s.d.median_rank"]
    assert table.values == case["values"]
    assert table.averages.common_columns == case["common_columns"]
    for name in ("mean", "normalized_mean", "mean_rank"):
        assert getattr(table.averages, name) == pytest.approx(case[name], rel=1e-9)
    assert any("use 3 of 4 columns" in note for note in table.notes)


def test_a_missing_tower_leaves_columns_in_the_averages_and_a_failure_does_not(
    tmp_path: Path,
) -> None:
    def own(target: str, dataset: str, number: int, **result: Any) -> Cell:
        return cell(tmp_path, target, dataset, number, **result)

    both = [own("both", "a", 0, metrics={"top1": 0.9}), own("both", "b", 1, metrics={"top1": 0.5})]
    image_only = [own("image", "b", 8, metrics={"top1": 0.6})]
    table = make_table(both + image_only)
    assert table.averages.common_columns == [0, 1]
    assert table.averages.mean == [pytest.approx(0.7), pytest.approx(0.6)]
    assert table.averages.mean_rank == [1.5, 1.0]
    (note,) = table.notes
    assert note.startswith(
        "image: its mean, normalized_mean and mean_rank use 1 of these 2 columns"
    )
    write_table(tmp_path / "t.tex", table)
    assert r"image & - & \textbf{0.600} & 0.600" in (tmp_path / "t.tex").read_text()
    failing = make_table([*both, *image_only, own("image", "a", 7)])
    assert failing.averages.common_columns == [1] and failing.averages.mean == [0.5, 0.6]


def two_rows(folder: Path, **other: Any) -> Table:
    base = {"metrics": {"top1": 0.5}, "hashes": {"rows": "aaaa1111bbbb"}, "precision": "fp32"}
    return make_table(
        [cell(folder, "m0", "a", 0, **base), cell(folder, "m1", "a", 7, **{**base, **other})]
    )


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"hashes": {"rows": "cccc2222dddd"}}, "rows or classes"),
        ({"hashes": {"rows": "aaaa1111bbbb", "classes": "x"}}, "rows or classes"),
        ({"precision": "bf16"}, "precision"),
        ({"protocol": "other"}, "protocol"),
        ({"split": "val"}, "split"),
    ],
)
def test_what_was_measured_otherwise_is_a_column_of_its_own(
    tmp_path: Path, other: dict[str, Any], word: str
) -> None:
    table = two_rows(tmp_path, **other)
    assert len(table.columns) == 2 and table.averages.common_columns == []
    assert table.averages.mean == [None, None] and table.averages.mean_rank == [None, None]
    rows = other.get("hashes", {"rows": "aaaa1111bbbb"})["rows"][:8]
    assert table.names == ["s.a.top1", f"s.a.top1#{rows}"]
    assert f"s.a.top1#{rows} is not comparable with s.a.top1: other {word}" in table.notes


def test_equal_measurements_share_a_column(tmp_path: Path) -> None:
    assert two_rows(tmp_path).averages.mean == [0.5, 0.5]


def test_what_a_suite_decided_while_it_ran_makes_no_other_column(tmp_path: Path) -> None:
    table = two_rows(tmp_path, settings={"C": 0.1, "trainings": 17})
    assert len(table.columns) == 1 and table.averages.mean_rank == [1.5, 1.5]


def test_metrics_are_the_primary_one_all_or_those_named(tmp_path: Path) -> None:
    own = cell(tmp_path, "m0", "a", 0, metrics={"top1": 0.5, "top5": 0.75})
    assert make_table([own]).names == ["s.a.top1"]
    assert make_table([own], ["headline"]).names == ["s.a.top1"]
    assert make_table([own], ["all"]).names == ["s.a.top1", "s.a.top5"]
    assert make_table([own], ["top5"]).names == ["s.a.top5"]


def test_summaries_are_over_primary_metrics_where_there_are_any(tmp_path: Path) -> None:
    metrics = {"top1": 0.5, "top5": 0.75, "image_effective_rank": 12.0}
    own = cell(tmp_path, "m0", "a", 0, metrics=metrics)
    every = make_table([own], ["all"])
    assert every.averages.mean == [0.5] and every.averages.common_columns == [0]
    assert make_table([own], ["top5"]).averages.mean == [0.75]


def test_a_damaged_result_counts_as_missing(tmp_path: Path) -> None:
    own = cell(tmp_path, "m0", "a", 0, metrics={"top1": 0.5})
    (file,) = tmp_path.glob("*.json")
    file.write_text('{"metrics": {"to')
    assert find_result(own) is None
    assert make_table([own]).rows[0]["status"] == "missing"


def test_csv_is_exact_and_begins_with_chance(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", make_table(golden_cells(tmp_path)))
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][0] == "target" and rows[0][-3:] == ["mean", "normalized_mean", "mean_rank"]
    assert rows[1] == ["chance", "0.1", "0.25", "0.01", "20.0", "", "", ""]
    assert rows[4][:5] == ["m2", "0.85", "", "0.2", "4.0"]
    assert float(rows[2][-2]) == pytest.approx(0.5909090909090909, rel=1e-12)


def test_markdown_is_rounded_and_names_failures(tmp_path: Path) -> None:
    cells = golden_cells(tmp_path)
    failed = next(each for each in cells if find_result(each) is None)
    Path(failed.failure).write_text('{"error": "broken", "seconds": 1.0}')
    write_table(tmp_path / "t.md", make_table(cells), digits=2)
    text = (tmp_path / "t.md").read_text()
    assert "| m2 | 0.85 | failed | 0.20 | 4.00 | 0.53 | 0.51 | 2.67 |" in text
    assert "| chance | 0.10 | 0.25 | 0.01 | 20.00 | - | - | - |" in text


def test_latex_is_booktabs_with_the_best_in_bold_and_names_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["vlkd", "eval", "runs/first"])
    write_table(tmp_path / "t.tex", make_table(golden_cells(tmp_path)))
    text = (tmp_path / "t.tex").read_text()
    assert (
        r"s.c.mean\_recall" in text
        and r"\toprule" in text
        and text.startswith("% vlkd eval runs/first\n")
    )
    assert r"m0 & \textbf{0.900} & 0.500 & \textbf{0.300} & 3.000 & \textbf{0.600}" in text
    assert r"m1 & 0.800 & \textbf{0.700} & \textbf{0.300} & \textbf{2.000}" in text
    assert "% rows of s.a.top1: unknown" in text


def test_json_holds_every_cell_and_the_summaries(tmp_path: Path) -> None:
    write_table(tmp_path / "t.json", make_table(golden_cells(tmp_path)))
    found = json.loads((tmp_path / "t.json").read_text())
    assert len(found["cells"]) == 12 and found["common_columns"][0] == "s.a.top1"
    assert found["summaries"]["m0"]["mean"] == pytest.approx(0.6)


def test_groups_have_means_where_a_target_has_every_set_measured_alike(tmp_path: Path) -> None:
    def own(target: str, dataset: str, number: int, value: float, rows: str = "r") -> Cell:
        return cell(
            tmp_path,
            target,
            dataset,
            number,
            metrics={"top1": value},
            chance={"top1": 0.1 if dataset == "a" else 0.5},
            hashes={"rows": rows},
            num_items=10 if dataset == "a" else 30,
        )

    cells = [
        own("m0", "a", 0, 0.4),
        own("m0", "b", 1, 0.8),
        own("m1", "a", 7, 0.6),
        own("m1", "b", 8, 0.9, rows="other"),
        own("m2", "a", 14, 0.5),
    ]
    groups = [
        Group("pair", ("a", "b")),
        Group("pair.all_items", ("a", "b"), by_items=True),
        Group("larger", ("a", "c")),
        Group("elsewhere", ("x",)),
    ]
    table = make_table(cells, groups=groups)
    assert [mean.name for mean in table.groups] == ["s.pair", "s.pair.all_items"]
    plain, by_items = table.groups
    assert plain.values == [pytest.approx(0.6), None, None]
    assert plain.chance == pytest.approx(0.3)
    assert by_items.values[0] == pytest.approx(0.7) and by_items.chance == pytest.approx(0.4)
    assert "s.larger: no target has all 2 data sets, so it has no mean" in table.notes
    write_table(tmp_path / "t.csv", table)
    head, chance, first = list(csv.reader((tmp_path / "t.csv").open(newline="")))[:3]
    assert head[-5:-3] == ["s.pair", "s.pair.all_items"]
    assert float(chance[-5]) == pytest.approx(0.3) and float(first[-5]) == pytest.approx(0.6)
    write_table(tmp_path / "t.tex", table)
    assert r"s.pair.all\_items" in (tmp_path / "t.tex").read_text()
    write_table(tmp_path / "t.json", table)
    found = json.loads((tmp_path / "t.json").read_text())["groups"]
    assert found["s.pair"]["m0"] == pytest.approx(0.6) and found["s.pair"]["m1"] is None
