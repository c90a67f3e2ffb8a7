from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.fakes import COLORED, FakeTower, TableBackbone
from tests.support.suite_cases import CLASSES, class_of_prompt
from tests.unit.engine.recipes import IMAGE
from tests.unit.evaluation.test_goldens import CASES
from vlkd_cli.builders.adapters.any_tower import merged
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.evaluation.probes.wise_ft import interpolate_states, interpolate_towers, wise_ft
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec, TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.tower import Tower

SPEC = EvalSpec.model_validate(
    {"suite": "zero_shot", "data": {"reader": COLORED, "num_samples": 80}}
)


class Shift(nn.Module):
    """A head that turns classes by a learned amount: at 0 everything is one class off, at 1 nothing
    is."""

    width = CLASSES

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.amount * features + (1 - self.amount) * features.roll(1, dims=1)


def tower(amount: float) -> Tower:
    return Tower(
        "image", TableBackbone(torch.eye(CLASSES).repeat(4096 // CLASSES, 1)), head=Shift(amount)
    )


def test_weights_are_mixed_as_wise_ft_mixes_them_and_counters_are_the_end_s() -> None:
    expected = CASES["wise_ft.interpolate"]["expected"]
    start, end = nn.BatchNorm1d(2).state_dict(), nn.BatchNorm1d(2).state_dict()
    end["weight"] = torch.tensor([3.0, 6.0])
    start["num_batches_tracked"], end["num_batches_tracked"] = torch.tensor(10), torch.tensor(13)
    mixed = interpolate_states(start, end, 0.5)
    assert mixed["weight"].tolist() == expected["weight"]
    # wise-ft averages the counter to 11.5 and cuts it off; here it stays the end's.
    assert mixed["num_batches_tracked"].item() == 13
    assert interpolate_states(start, end, 0)["weight"].tolist() == [1, 1]
    assert interpolate_states(start, end, 1)["weight"].tolist() == [3, 6]


def test_the_curve_goes_from_the_start_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = tower(1.0)
    subject = Subject(
        end,
        FakeTower("text", class_of_prompt, CLASSES),
        towers={"image": end},
        starts={"image": tower(0.0)},
    )
    outputs = []

    def run(between: Subject, specs: list[EvalSpec]) -> list[Result]:
        outputs.append(between.output)
        return run_suites(between, specs)

    monkeypatch.setattr("vlkd_cli.evaluation.probes.wise_ft.run_suites", run)
    subject = replace(subject, output=tmp_path)
    results = wise_ft(subject, [SPEC], [0, 0.4, 0.6, 1], folder=tmp_path)
    # Ranked lists and the like of the run's own weights stay.
    assert outputs == [tmp_path / f"wise_ft_{alpha}" for alpha in ("0", "0.4", "0.6", "1")]
    assert [result.metrics["top1"] for result in results] == [0, 0, 1, 1]
    assert [result.settings["wise_ft_alpha"] for result in results] == [0, 0.4, 0.6, 1]
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert "0.6,zero_shot," in (tmp_path / "wise_ft.csv").read_text()
    assert "WiSE-FT" in capsys.readouterr().out
    assert subject.image is not None and subject.image.head.amount == 1


def test_towers_that_do_not_fit_are_refused() -> None:
    other = tower(0.0)
    other.encoder.settings = "another model"
    with pytest.raises(CheckpointError, match="built differently"):
        interpolate_towers(other, tower(1.0), 0.5)
    with pytest.raises(CheckpointError, match="missing"):
        interpolate_states({"a": torch.ones(2)}, {"b": torch.ones(2)}, 0.5)


def test_a_run_in_which_nothing_was_trained_has_no_curve() -> None:
    with pytest.raises(RecipeError, match="no tower that is evaluated was trained in this run"):
        wise_ft(Subject(tower(1.0), None), [SPEC], [0.5])


def test_adapters_are_merged_before_weights_are_mixed() -> None:
    """The weights at alpha are W + alpha B A, not W + (alpha B) (alpha A)."""
    torch.manual_seed(0)
    section = TowerSpec.model_validate({**IMAGE, "adapter": {"name": "lora", "rank": 2}})
    start = assemble("image", section)
    end = copy.deepcopy(start)
    torch.manual_seed(1)
    for name, value in end.trainable_state().items():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value) * 0.1)
        assert name in start.trainable_state()
    half = interpolate_towers(start, end, 0.5).encoder.state_dict()
    from_weights = interpolate_states(
        merged(start.encoder).state_dict(), merged(end.encoder).state_dict(), 0.5
    )
    moved = 0
    for name, value in half.items():
        torch.testing.assert_close(value, from_weights[name])
        moved += not value.equal(merged(start.encoder).state_dict()[name])
    assert moved
