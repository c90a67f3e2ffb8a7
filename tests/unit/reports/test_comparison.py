"""Groups, differences and warnings of a comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.run_folders import make_run
from vlkd_cli.errors import UserError
from vlkd_cli.numerics.statistics import bootstrap_difference, paired_difference, summarize
from vlkd_cli.reports.comparison import compare, group_runs
from vlkd_cli.reports.comparison_table import cells_of, columns_of, to_json, write_comparison
from vlkd_cli.reports.items import answers_of
from vlkd_cli.reports.records import StoredResult, read_run

FIRST, SECOND = (0.30, 0.35, 0.28), (0.40, 0.42, 0.41)


def sweep(folder: Path, **keys):
    """Two learning rates times three seeds."""
    runs = []
    for lr, values in ((1e-3, FIRST), (3e-4, SECOND)):
        for seed, value in enumerate(values):
            run = make_run(
                folder / f"{lr}-{seed}",
                seed=seed,
                values=[0.1, value],
                keys={"optimizer.lr": lr, "data.workers": seed},
                **keys,
            )
            runs.append(read_run(run))
    return runs


def test_runs_that_differ_in_seed_and_workers_are_one_group(tmp_path: Path):
    groups = group_runs(sweep(tmp_path))
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("lr=0.001", 3),
        ("lr=0.0003", 3),
    ]


def test_nearly_equal_numbers_are_different_recipes(tmp_path: Path):
    for number, lr in enumerate((1.0, 1.0000001)):
        make_run(tmp_path / str(number), seed=number, keys={"optimizer.lr": lr})
    groups = group_runs([read_run(tmp_path / "0"), read_run(tmp_path / "1")])
    assert [group.name for group in groups] == ["lr=1", "lr=1.0000001"]


def test_names_take_the_shortest_suffix_that_no_other_key_has(tmp_path: Path):
    for n in range(2):
        keys = {"towers.image.model": f"m{n}", "towers.text.model": f"t{n}", "optimizer.lr": n + 1}
        make_run(tmp_path / str(n), keys=keys)
    groups = group_runs([read_run(tmp_path / "0"), read_run(tmp_path / "1")])
    assert groups[0].name == "image.model=m0 text.model=t0 lr=1"
    assert groups[1].keys == {
        "towers.image.model": "m1",
        "towers.text.model": "t1",
        "optimizer.lr": "2",
    }


def test_another_folder_of_the_same_data_is_the_same_group_and_other_data_is_not(tmp_path: Path):
    for n, path in enumerate(["/a/train.csv", "/b/train.csv", "/b/other.csv"]):
        make_run(tmp_path / str(n), keys={"data.path": path})
    groups = group_runs([read_run(tmp_path / str(n)) for n in range(3)])
    assert [len(group.runs) for group in groups] == [2, 1]


def test_one_group_is_named_by_its_recipe(tmp_path: Path):
    make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    (group,) = group_runs([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    assert group.name == "mine"


def test_differences_over_seeds_equal_the_statistics_by_hand(tmp_path: Path):
    found = compare(sweep(tmp_path))
    assert (found.at, found.chance, found.baseline.name) == ("last", 0.05, "lr=0.001")
    base, other = found.rows
    assert base.summary == summarize(FIRST) and base.difference is None
    assert other.summary == summarize(SECOND)
    assert other.difference == paired_difference(SECOND, FIRST) and other.over == "seeds"
    assert other.p == other.holm_p == other.difference.p


def test_seeds_without_a_partner_are_left_out_and_named(tmp_path: Path):
    runs = [run for run in sweep(tmp_path) if run.name != "0.0003-1"]
    row = compare(runs).rows[1]
    assert row.difference.n == 2 and row.left_out == ["0.001-1"]
    assert any(
        "left out, without a partner of the same seed: 0.001-1" in note
        for note in compare(runs).notes
    )


def test_one_pair_of_seeds_is_compared_on_the_same_items(tmp_path: Path):
    ours, theirs = [True] * 6 + [False] * 4, [True] * 3 + [False] * 7
    for name, right, lr in (("a", theirs, 1), ("b", ours, 2)):
        make_run(tmp_path / name, right=right, keys={"optimizer.lr": lr})
    found = compare([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    row = found.rows[1]
    differences = np.subtract(ours, theirs, dtype=float)
    assert row.over == "items"
    assert row.difference == bootstrap_difference(differences, range(10))
    assert row.p == 0.25  # McNemar: 3 to 0
    assert "differences on the same items: other items, not other seeds" in found.notes
    assert "lr=1: one seed: no spread" in found.notes


def test_other_rows_are_not_compared(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", rows="bb22", keys={"optimizer.lr": 1.0})
    found = compare([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    assert found.rows[1].difference is None
    assert "lr=1: rows differ: not ranked" in found.notes


def test_the_best_evaluation_counts_where_it_was_watched(tmp_path: Path):
    runs = [read_run(make_run(tmp_path / "a", best="zero_shot.top1"))]
    found = compare(runs)
    assert (found.at, found.rows[0].points) == ("best", [(20, 0.3)])
    warning = "best step chosen on test, which is also reported: this value is optimistic"
    assert any(note.startswith(warning) for note in found.notes)
    assert compare(runs, at="last").rows[0].points == [(30, 0.25)]


def test_data_without_parts_is_named_where_the_best_step_was_chosen_on_it(tmp_path: Path):
    run = make_run(tmp_path / "a", best="zero_shot.top1")
    for file in (run / "results").rglob("zero_shot-*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "split": "all"}))
    assert compare([read_run(run)]).notes[0].startswith("best step chosen on pets, which is also")


def test_a_best_that_was_not_watched_is_marked(tmp_path: Path):
    found = compare([read_run(make_run(tmp_path / "a"))], at="best")
    assert "best of 3 chosen on test: optimistic" in found.notes


@pytest.mark.parametrize("name", ["lr=0.0003", "lr=3e-4", "0.0003-1", "some/where/0.0003-1"])
def test_the_baseline_is_a_group_or_one_of_its_runs(tmp_path: Path, name):
    assert compare(sweep(tmp_path), baseline=name).baseline.name == "lr=0.0003"


def test_mistakes_are_one_line(tmp_path: Path):
    runs = sweep(tmp_path)
    with pytest.raises(UserError, match=r"--baseline lr=3: .* Groups: lr=0.001, lr=0.0003\."):
        compare(runs, baseline="lr=3")
    with pytest.raises(UserError, match=r"Did you mean 'zero_shot\.top1'"):
        compare(runs, metric="zero_shot.top2")
    with pytest.raises(UserError, match="no evaluation yet"):
        compare([read_run(make_run(tmp_path / "empty", values=[]))])


def test_small_and_unfinished_groups_are_named(tmp_path: Path):
    make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, state="failed", error="x")
    make_run(tmp_path / "c", values=[])
    found = compare([read_run(tmp_path / name) for name in "abc"])
    assert "mine: n = 2: wide by construction" in found.notes
    assert "b: failed at step 30" in found.notes
    assert "c: no zero_shot.pets.top1; left out" in found.notes


def test_several_comparisons_are_adjusted_and_reported(tmp_path: Path):
    runs = []
    for lr in range(1, 5):
        for seed in range(3):
            values = [0.1, 0.2 + 0.01 * lr + 0.001 * seed * lr * lr]
            keys = {"optimizer.lr": lr}
            runs.append(
                read_run(make_run(tmp_path / f"{lr}-{seed}", seed=seed, values=values, keys=keys))
            )
    found = compare(runs)
    assert "3 comparisons at 95 %: one false alarm in seven such tables" in found.notes
    assert all(row.holm_p >= row.p for row in found.rows[1:])


@pytest.mark.parametrize("kind", [".csv", ".md", ".tex", ".json"])
def test_the_table_is_written_in_the_format_of_its_name(tmp_path: Path, kind):
    found = compare(sweep(tmp_path))
    path = tmp_path / "tables" / f"out{kind}"
    write_comparison(path, found)
    text = path.read_text()
    if kind == ".json":
        assert json.loads(text) == json.loads(json.dumps(to_json(found)))
    elif kind == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert float(rows[1]["mean"]) == found.rows[1].summary.mean
        assert rows[0]["difference"] == ""
    else:
        assert "0.310" in text and "0.410" in text
        assert (r"95 \% interval" in text) == (kind == ".tex")


def test_an_unknown_format_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"ends in \.csv, \.md, \.tex, \.json"):
        write_comparison(tmp_path / "out.xlsx", compare(sweep(tmp_path)))


def test_a_value_that_does_not_exist_is_null_in_json(tmp_path: Path):
    run = read_run(make_run(tmp_path / "a", values=[float("nan")]))
    write_comparison(tmp_path / "out.json", compare([run]))
    assert json.loads((tmp_path / "out.json").read_text())["groups"][0]["mean"] is None


def test_one_group_has_no_columns_of_differences(tmp_path: Path):
    found = compare([read_run(make_run(tmp_path / "a"))])
    assert columns_of(found) == ["group", "n", "mean", "SD", "95 % interval", "step"]
    assert cells_of(found, found.rows[0]) == ["mine", "1", "0.2500", "", "", "30"]


def test_answers_of_a_retrieval_average_to_its_metrics(tmp_path: Path):
    np.savez(
        tmp_path / "r.items.npz",
        image_rank=[1, 3],
        caption_rank=[1, 2, 9, 1],
        captions=[2, 2],
    )
    result = StoredResult(tmp_path / "r.json", 1, {"settings": {"k": [1, 5]}})
    own = answers_of(result, "text_to_image_R@1")
    assert own.values.tolist() == [1, 0, 0, 1] and own.groups.tolist() == [0, 0, 1, 1]
    assert answers_of(result, "image_to_text_R@1").values.tolist() == [1, 0]
    recalls = [
        answers_of(result, f"{d}_R@{k}").values.mean()
        for d in ("image_to_text", "text_to_image")
        for k in (1, 5)
    ]
    assert answers_of(result, "mean_recall").values.mean() == pytest.approx(np.mean(recalls))
    assert answers_of(result, "image_to_text_median_rank") is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"nonsense"])
def test_damaged_answers_are_none(tmp_path: Path, damage):
    (tmp_path / "r.items.npz").write_bytes(damage)
    assert answers_of(StoredResult(tmp_path / "r.json", 1, {}), "top1") is None
