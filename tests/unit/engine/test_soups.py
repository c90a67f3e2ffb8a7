"""Towers that average several runs, copies of towers, and what a run retains."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.recipes import problems_with
from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe, train, write_recipe
from vlkd_cli.builders.adapters.any_tower import merged
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.export import export
from vlkd_cli.engine.hand_over import HandOver
from vlkd_cli.engine.launching.start_evaluation import start_evaluation
from vlkd_cli.engine.periodic import _require_chance
from vlkd_cli.engine.soups import decide_soups
from vlkd_cli.errors import UserError
from vlkd_cli.evaluation.probes.wise_ft import interpolate_towers
from vlkd_cli.evaluation.run import Stored, print_results, retained_fraction
from vlkd_cli.recipe.load import load_recipe, parse_recipe
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.towers.exported import load_exported
from vlkd_cli.towers.soup import soup_of
from vlkd_cli.towers.tower import Tower

EVAL = {
    "suite": "zero_shot",
    "name": "old",
    "data": {"reader": "shapes", "num_samples": 12, "size_px": 32},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base, and two runs that fine-tuned it."""
    folder = tmp_path_factory.mktemp("soups")
    base = train(folder, tiny_recipe(data={"num_samples": 16}, train={"epochs": 1}), "base")
    found = [str(base)]
    for seed in (1, 2):
        recipe = tiny_recipe(data={"num_samples": 16}, train={"epochs": 1, "seed": seed})
        recipe["towers"] = {name: {"run": str(base)} for name in ("image", "text")}
        found.append(str(train(folder, recipe, f"tuned{seed}")))
    return found


def towers(*run: str, **keys: Any) -> dict[str, Tower]:
    own = {"run": list(run) if len(run) > 1 else run[0], **keys}
    recipe = {"towers": dict.fromkeys(("image", "text"), own)}
    return load_towers(parse_recipe(json.dumps(recipe), "here"), None, None)


def test_a_list_of_runs_is_their_average(runs: list[str]) -> None:
    one, other, both = towers(runs[1]), towers(runs[2]), towers(*runs[1:])
    for name in ("image", "text"):
        states = [each[name].state_dict() for each in (one, other, both)]
        for key, value in states[2].items():
            if value.is_floating_point():
                mean = (states[0][key].double() + states[1][key].double()) / 2
                torch.testing.assert_close(value, mean.to(value.dtype), rtol=0, atol=0)
    twice = towers(runs[1], runs[1])
    assert all(
        value.equal(one["image"].state_dict()[key])
        for key, value in twice["image"].state_dict().items()
    )
    assert str(both["image"].source).count("last.pt") == 2


def test_greedy_takes_the_best_run_and_what_it_gains_by(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = {"run": runs[1:], "soup": {"greedy": "old"}}
    recipe = load_recipe(
        write_recipe(tmp_path, {"towers": {"image": tower, "text": tower}, "evals": [EVAL]})
    )
    decided = decide_soups(recipe)
    message = capsys.readouterr().out
    assert "Soup of image and text by old" in message and "uniform average of 2" in message
    assert all(decided.towers[name].run == decided.towers["image"].run for name in recipe.towers)
    taken = decided.towers["image"].run
    assert taken in (runs[1], runs[2], runs[1:], runs[:0:-1])
    assert decided.towers["image"].soup == ("uniform" if isinstance(taken, list) else None)
    output = tmp_path / "x.json"
    start_evaluation(
        target=str(tmp_path / "tiny.yaml"), suites=[], output=output, runs=tmp_path / "runs"
    )
    (result,) = json.loads(output.read_text())
    each = []
    for run in runs[1:]:
        path = tmp_path / "each.json"
        start_evaluation(
            target=run,
            suites=["zero_shot"],
            suite_settings=[f"data={json.dumps(EVAL['data'])}"],
            output=path,
        )
        each += [json.loads(path.read_text())[0]["metrics"]["top1"]]
    assert result["metrics"]["top1"] >= max(each)


def test_the_average_is_chosen_by_what_is_better_and_a_test_split_is_a_warning(
    runs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    errors = iter([0.4, 0.2, 0.3, 0.3])  # of either run alone, then of their average, twice

    def measured(*_: Any) -> list[Any]:
        metrics = {"mae_years": next(errors)}
        return [SimpleNamespace(split="test", primary_metric="mae_years", metrics=metrics)]

    monkeypatch.setattr("vlkd_cli.engine.soups.run_suites", measured)
    tower = {"run": runs[1:], "soup": {"greedy": "old"}}
    recipe = {"towers": {"image": tower, "text": tower}, "evals": [EVAL]}
    decided = decide_soups(load_recipe(write_recipe(tmp_path, recipe)))
    assert decided.towers["image"].run == runs[2]
    message = capsys.readouterr()
    assert "0.2000" in message.out and "-0.2000" not in message.out
    assert message.err.count("reads a test split") == 1


def test_runs_of_other_towers_are_refused(runs: list[str], tmp_path: Path) -> None:
    other = tiny_recipe(data={"num_samples": 16}, train={"epochs": 1})
    other["towers"]["image"] = {**IMAGE, "config": {**IMAGE["config"], "layers": 2}}
    wider = train(tmp_path, other)
    with pytest.raises(UserError, match="built differently"):
        towers(runs[0], str(wider))


def test_a_copy_of_a_tower_is_where_that_started(runs: list[str], tmp_path: Path) -> None:
    recipe = tiny_recipe(
        towers={
            "image": IMAGE,
            "text": TEXT,
            "start": {"like": "image", "train": "none"},
        },
        distillers=[
            {"name": "infonce", "student": "image", "teacher": "text"},
            {"name": "simreg", "student": "image", "teacher": "start"},
        ],
        data={"num_samples": 16},
        train={"epochs": 1},
    )
    run = train(tmp_path, recipe)
    snapshot = load_recipe(run / "recipe.yaml")
    assert snapshot.towers["start"].like == "image"
    checkpoint = Checkpoint.load(run / "checkpoints" / "last.pt")
    assert "start" not in checkpoint.towers
    trained = load_towers(snapshot, run, checkpoint)
    before = load_towers(snapshot, run, checkpoint, trained=False)
    copy, start = trained["start"].encoder.state_dict(), before["image"].encoder.state_dict()
    assert all(value.equal(start[name]) for name, value in copy.items())
    assert any(
        not value.equal(start[name])
        for name, value in trained["image"].encoder.state_dict().items()
    )
    # Of a run with a copy, `run:` takes the tower itself.
    again = parse_recipe(json.dumps({"towers": {"image": {"run": str(run)}}}), "here")
    taken = load_towers(again, None, None)["image"].encoder.state_dict()
    assert all(
        value.equal(taken[name]) for name, value in trained["image"].encoder.state_dict().items()
    )


def test_an_adapter_in_a_tower_of_a_run_starts_at_its_outputs(
    runs: list[str], tmp_path: Path
) -> None:
    plain, adapted = towers(runs[0]), towers(runs[0], adapter={"name": "lora", "rank": 2})
    pictures = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        adapted["image"].eval().encode(pictures), plain["image"].eval().encode(pictures)
    )
    recipe = tiny_recipe(data={"num_samples": 16}, train={"epochs": 1})
    recipe["towers"] = {
        name: {"run": runs[0], "adapter": {"name": "lora", "rank": 2}} for name in ("image", "text")
    }
    tuned = train(tmp_path, recipe)
    with pytest.raises(UserError, match="the run's tower has adapter 'lora' already"):
        towers(str(tuned), adapter={"name": "lora"})
    # The mean of an adapted run with itself is that run, merged.
    one, twice = towers(str(tuned)), towers(str(tuned), str(tuned))
    torch.testing.assert_close(
        twice["image"].eval().encode(pictures), one["image"].eval().encode(pictures)
    )


def test_adapters_of_other_ranks_and_a_frozen_backbone_are_averaged_as_weights(
    runs: list[str],
) -> None:
    parts = [
        towers(runs[1], adapter={"name": "lora", "rank": 2})["image"],
        towers(runs[2], adapter={"name": "lora", "rank": 3, "alpha": 1})["image"],
        towers(runs[2])["image"],
        towers(runs[2], train="none")["image"],
    ]
    for seed, part in enumerate(parts[:2]):
        torch.manual_seed(seed)
        for name, parameter in part.named_parameters():
            if name.endswith("vlkd_b"):
                parameter.data.normal_()
    expected = [merged(part.encoder).state_dict() for part in parts[:2]]
    expected += [part.encoder.state_dict() for part in parts[2:]]
    found = soup_of(parts, ["a", "b", "c", "d"]).encoder.state_dict()
    for name, value in found.items():
        mean = torch.stack([each[name].double() for each in expected]).mean(0)
        torch.testing.assert_close(value, mean.to(value.dtype), rtol=0, atol=0)
    frozen = soup_of(parts[3:] + parts[2:3], ["a", "b"])
    assert frozen.backbone_is_frozen


def test_an_export_between_start_and_end_is_what_wise_ft_measures(
    runs: list[str], tmp_path: Path
) -> None:
    export(target=runs[1], output=tmp_path / "out", wise_ft=0.25)
    start, end = towers(runs[0])["image"], towers(runs[1])["image"]
    between = interpolate_towers(start, end, 0.25).eval()
    pictures = torch.rand(2, 3, 32, 32)
    found = load_exported(tmp_path / "out" / "image").eval().encode(pictures)
    torch.testing.assert_close(found, between.encode(pictures), rtol=0, atol=1e-6)
    assert (found - end.eval().encode(pictures)).abs().max() > 1e-4
    with pytest.raises(UserError, match="results of the run's last weights, which --wise-ft"):
        export(
            target=runs[1], output=tmp_path / "card", wise_ft=0.5, hand_over=HandOver(True, "mit")
        )


def test_the_closing_table_shows_the_retained_fraction_of_a_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(
        data={"num_samples": 16}, train={"epochs": 1}, evals=[{**EVAL, "reference": True}]
    )
    run = train(tmp_path, recipe)
    table = capsys.readouterr().out
    assert "retained" in table and "before" in table
    values = [
        json.loads(next(run.glob(f"results/step_{step}/*.json")).read_text())
        for step in ("00000000", "00000002")
    ]
    start, end = (each["metrics"]["top5"] for each in values)
    retained = retained_fraction("top5", start, end, values[0]["chance"]["top5"])
    assert retained is None or f"{retained:.1%}" in table
    # A run that is complete has its table in its files.
    train(tmp_path, recipe, resume=str(run))
    assert "retained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "start", "end", "chance", "retained"),
    [
        ("top1", 0.5, 0.3, 0.1, "50.0%"),
        ("top1", 0.1, 0.3, 0.1, "-"),  # at chance
        ("top1", 0.05, 0.3, 0.1, "-"),  # below it: a fraction would be negative for a gain
        ("image_to_text_median_rank", 10, 30, 50, "50.0%"),
        ("image_to_text_median_rank", 60, 30, 50, "-"),
        ("top1", None, 0.3, 0.1, ""),
        ("other", 0.5, 0.3, None, ""),
    ],
)
def test_what_was_no_better_than_chance_cannot_be_retained(
    metric: str,
    start: float | None,
    end: float,
    chance: float | None,
    retained: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {} if chance is None else {metric: chance}
    results = [Stored("old", "shapes", "val", {metric: end}, known)]
    print_results(results, {("old", "shapes", metric): start}, {"old"})
    printed = capsys.readouterr().out
    columns = ["old", "shapes", "val", metric]
    cells = printed.splitlines()[3].split()[len(columns) :]
    assert (retained in cells) if retained else ("-" not in cells and "%" not in printed)
    assert ("no better than chance before training" in printed) == (retained == "-")


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("towers.image={run: [a]}", "a list of 1 has nothing to average"),
        ("towers.image={run: a, soup: uniform}", "averages several runs. Give a list"),
        ("towers.image={run: [a, b], soup: {greedy: odl}}", "no entry of evals is 'odl'"),
        ("towers.image={like: nobody}", "no model is called 'nobody'"),
        (
            "evals=[{suite: zero_shot, reference: true, last: false}]",
            "compares the end of the run with its start",
        ),
        (
            "evals=[{suite: zero_shot, reference: true, first: true}]",
            "no effect with reference",
        ),
    ],
)
def test_what_means_nothing_is_refused(option: str, line: str) -> None:
    found = problems_with(option)
    assert any(line in problem for problem in found), found


def test_a_reference_without_chance_is_refused_before_the_first_step() -> None:
    spec = EvalSpec.model_validate({**EVAL, "reference": True})
    known = SimpleNamespace(name="old", primary_metric="top1", chance={"top1": 0.1})
    _require_chance([spec], [known])  # type: ignore[list-item]
    known.chance = {}
    with pytest.raises(UserError, match="'old' is a reference, and its suite gives no chance for"):
        _require_chance([spec], [known])  # type: ignore[list-item]
