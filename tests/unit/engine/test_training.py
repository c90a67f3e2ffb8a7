from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.fakes import FakeReader
from tests.unit.engine.recipes import IMAGE, TEXT, differences, final_state, tiny_recipe, train
from vlkd_cli.composition.composition import Composition
from vlkd_cli.data.batch import Broken
from vlkd_cli.engine.periodic import Evaluations
from vlkd_cli.engine.run import Run
from vlkd_cli.engine.trainer import Due, Trainer
from vlkd_cli.engine.training_data import captions_of
from vlkd_cli.errors import CheckpointError, RecipeError, UserError
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.reports.csv import read_metrics

SMALL_EVAL = [
    {
        "suite": "retrieval",
        "data": {"reader": "shapes", "split": "val", "num_samples": 16, "size_px": 32},
        "every_epochs": 1,
    }
]


def test_a_run_leaves_recipe_versions_metrics_checkpoints_and_results(tmp_path: Path) -> None:
    run = train(tmp_path, tiny_recipe(evals=SMALL_EVAL))
    assert {"recipe.yaml", "versions.json", "metrics.csv", "checkpoints", "results"} <= {
        path.name for path in run.iterdir()
    }
    metrics = read_metrics(run)
    assert [step for step, _ in metrics["train/loss"]] == list(range(1, 13))
    assert [step for step, _ in metrics["eval/retrieval.shapes.text_to_image_R@1"]] == [6, 12]
    result = json.loads(next((run / "results" / "step_00000012").glob("*.json")).read_text())
    assert result["suite"] == "retrieval" and result["chance"] and result["version"]
    assert result["model"]["run"] == str(run) and result["model"]["step"] == 12


def test_the_loss_falls(tmp_path: Path) -> None:
    losses = [
        value
        for _, value in read_metrics(train(tmp_path, tiny_recipe(train={"epochs": 6})))[
            "train/loss"
        ]
    ]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


def test_two_runs_of_one_recipe_are_equal_bit_for_bit(tmp_path: Path) -> None:
    first, second = (final_state(train(tmp_path, tiny_recipe(), run)) for run in ("a", "b"))
    assert differences(first, second) == []


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    first = final_state(train(tmp_path, tiny_recipe(), "a"))
    second = final_state(train(tmp_path, tiny_recipe(train={"seed": 1}), "b"))
    assert differences(first["towers"], second["towers"])


@pytest.mark.parametrize("stop", [1, 5, 6, 9])
def test_resuming_at_any_step_equals_never_having_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    recipe = tiny_recipe(
        train={"ema": 0.9, "accumulate": 1, "save_every_steps": stop, "save_every_epochs": None}
    )
    whole = final_state(train(tmp_path, recipe, "whole"))
    with monkeypatch.context() as patch:
        _stop_after(patch, stop)
        with pytest.raises(_Killed):
            train(tmp_path, recipe, "cut")
    resumed = final_state(train(tmp_path, recipe, "cut", resume=str(tmp_path / "cut")))
    assert differences(whole, resumed) == []


def test_a_checkpoint_of_format_1_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(train={"ema": 0.9, "save_every_steps": 5, "save_every_epochs": None})
    whole = final_state(train(tmp_path, recipe, "whole"))
    with monkeypatch.context() as patch:
        _stop_after(patch, 5)
        with pytest.raises(_Killed):
            train(tmp_path, recipe, "cut")
    path = tmp_path / "cut" / "checkpoints" / "last.pt"
    former = torch.load(path, weights_only=True)
    # As it was written then: torch's optimizer state, by position; no batch, version and files.
    former["optimizer"] = {
        "state": dict(enumerate(former["optimizer"].values())),
        "param_groups": [],
    }
    former["format"] = 1
    for name in ("version", "files", "global_batch"):
        del former[name]
    torch.save(former, path)
    resumed = final_state(train(tmp_path, recipe, "cut", resume=str(tmp_path / "cut")))
    assert differences(whole, resumed) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["optimizer"].pop("image.backbone.encoder.proj"), None),
        (lambda c: c["optimizer"].update({"image.x": {}}), "has no parameter 'image.x'"),
        (lambda c: c["ema"].popitem(), "the average of '.*' is missing"),
        (lambda c: c["distillers"].clear(), 'Missing key.* "infonce'),
        (lambda c: c["towers"].pop("text"), "holds no trained tower 'text'"),
    ],
    ids=["fewer states", "another parameter", "no average", "no distiller", "no tower"],
)
def test_a_checkpoint_of_another_recipe_is_one_line(
    tmp_path: Path, change: Any, message: str | None
) -> None:
    recipe = tiny_recipe(train={"steps": 1, "ema": 0.9})
    path = train(tmp_path, recipe) / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    if message is None:
        train(tmp_path, recipe, resume=str(tmp_path / "run"))
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        train(tmp_path, recipe, resume=str(tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_a_non_finite_step_changes_nothing_and_too_many_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer._update
    poisoned = {3, 4, 5, 6}
    before: dict[int, Any] = {}

    def poison(self: Trainer, loss: torch.Tensor) -> float:
        if self.step_count + 1 in poisoned:
            before.setdefault(self.step_count, [p.detach().clone() for p in self._parameters])
            next(p for p in self._parameters if p.grad is not None).grad.fill_(math.nan)
        return real(self, loss)

    monkeypatch.setattr(Trainer, "_update", poison)
    recipe = tiny_recipe(train={"max_nonfinite_steps": 3, "save_every_steps": 1})
    with pytest.raises(
        UserError,
        match=r"not finite for 3 consecutive steps, the last at step 5\. Lower optimizer.lr",
    ):
        train(tmp_path, recipe)
    state = final_state(tmp_path / "run")
    assert state["step"] == 4 and state["skipped_steps"] == 2
    first, last = before[2], before[4]
    assert all(a.equal(b) for a, b in zip(first, last, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_precisions_train(tmp_path: Path, precision: str) -> None:
    metrics = read_metrics(
        train(tmp_path, tiny_recipe(train={"precision": precision, "epochs": 1}))
    )
    assert all(math.isfinite(value) for _, value in metrics["train/loss"])


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "sgd", "momentum": 0.9}, {"name": "lars"}, {"name": "lion"}, {"name": "rmsprop"}],
)
def test_optimizers_by_name_train(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    run = train(
        tmp_path,
        tiny_recipe(optimizer={**optimizer, "lr": 1e-3, "weight_decay": 0.0}, train={"steps": 2}),
    )
    assert final_state(run)["step"] == 2


def test_a_frozen_tower_is_neither_trained_nor_saved_and_its_features_are_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(towers={"text": {**TEXT, "train": "none", "cache": True}})
    run = train(tmp_path, recipe)
    assert set(final_state(run)["towers"]) == {"image"}
    assert len(list((tmp_path / "cache" / "train_features").glob("*/features.npy"))) == 1
    uncached = {
        **recipe,
        "towers": {**recipe["towers"], "text": {**TEXT, "train": "none", "cache": False}},
    }
    cached, live = (
        read_metrics(folder)["train/loss"]
        for folder in (run, train(tmp_path, uncached, "uncached"))
    )
    # Not bit for bit: other captions share the batch in which a feature was computed.
    assert [value for _, value in cached] == pytest.approx([value for _, value in live], rel=1e-4)


def test_two_frozen_backbones_train_their_heads_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    head = {"head": {"name": "linear", "width": 8}, "train": "head", "cache": True}
    data = {"augment": {"name": "none"}}
    run = train(
        tmp_path,
        tiny_recipe(
            towers={"image": {**IMAGE, **head}, "text": {**TEXT, **head}},
            data=data,
            evals=SMALL_EVAL,
        ),
    )
    assert all(
        name.startswith("head.") for state in final_state(run)["towers"].values() for name in state
    )
    assert len(list((tmp_path / "cache" / "train_features").glob("*/features.npy"))) == 2


def test_a_momentum_tower_follows_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(
        towers={
            "image": IMAGE,
            "text": TEXT,
            "image_teacher": {"follows": "image", "momentum": {"cosine": [0.5, 1.0]}},
        },
        distillers=[
            {"name": "infonce"},
            {"name": "simreg", "student": "image", "teacher": "image_teacher", "weight": 0.5},
        ],
        train={"save_every_steps": 4},
    )
    whole = final_state(train(tmp_path, recipe, "whole"))
    with monkeypatch.context() as patch:
        _stop_after(patch, 4)
        with pytest.raises(_Killed):
            train(tmp_path, recipe, "cut")
    resumed = final_state(train(tmp_path, recipe, "cut", resume=str(tmp_path / "cut")))
    assert whole["followers"] and differences(whole, resumed) == []


def test_dry_run_takes_one_step_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from tests.unit.engine.recipes import write_recipe
    from vlkd_cli.engine.launching.start import TrainRequest, start_training

    assert (
        start_training(TrainRequest(recipe=write_recipe(tmp_path, tiny_recipe()), dry_run=True))
        == 0
    )
    printed = capsys.readouterr().out
    assert "trainable" in printed and "One step took" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_the_loss_of_a_dry_run_is_the_sum_of_its_weighted_terms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distillers = [
        {"name": "infonce", "weight": {"linear": [0.5, 1.0]}},
        {"name": "siglip"},
        {"name": "simreg", "weight": 3},
    ]
    train(tmp_path, tiny_recipe(distillers=distillers), dry_run=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "One step" in line]
    numbers = re.search(
        r"loss (\S+) = 0\.5 x infonce (\S+) \+ siglip (\S+) \+ 3 x simreg (\S+); gradient", line
    )
    assert numbers is not None, line
    loss, infonce, siglip, simreg = map(float, numbers.groups())
    assert loss == pytest.approx(0.5 * infonce + siglip + 3 * simreg, abs=5e-4)


def test_a_step_is_saved_before_it_is_evaluated_and_again_with_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = Evaluations.run, []

    def run(self: Evaluations, step: int, specs: Sequence[EvalSpec]) -> Any:
        state = final_state(tmp_path / "run")
        before.append((state["step"], state["evaluated"], state["best"]))
        return real(self, step, specs)

    monkeypatch.setattr(Evaluations, "run", run)
    train(tmp_path, tiny_recipe(evals=SMALL_EVAL, train={"best": "retrieval.text_to_image_R@10"}))
    state = final_state(tmp_path / "run")
    assert [step for step, *_ in before] == [6, 12]
    assert before[0] == (6, False, None) and not before[1][1]
    assert (state["step"], state["evaluated"]) == (12, True) and state["best"] is not None


def test_a_failing_evaluation_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Evaluations, step: int, specs: Sequence[EvalSpec]) -> None:
        raise RuntimeError("out of luck")

    recipe = tiny_recipe(
        evals=[{**SMALL_EVAL[0], "every_steps": 5}], train={"save_every_epochs": None}
    )
    whole = final_state(train(tmp_path, recipe, "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "run", fails)
        with pytest.raises(RuntimeError, match="out of luck"):
            train(tmp_path, recipe, "cut")
    stopped = final_state(tmp_path / "cut")
    assert (stopped["step"], stopped["evaluated"]) == (5, False)
    resumed = final_state(train(tmp_path, recipe, "cut", resume=str(tmp_path / "cut")))
    assert differences(whole, resumed) == []
    assert (tmp_path / "cut" / "results" / "step_00000005").is_dir()


@pytest.mark.parametrize(("poisoned", "outcome"), [({3, 5}, "warns"), ({1, 2, 3, 4}, "fails")])
def test_a_run_most_of_whose_steps_were_skipped_fails_and_others_warn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    poisoned: set[int],
    outcome: str,
) -> None:
    real = Trainer._update

    def poison(self: Trainer, loss: torch.Tensor) -> float:
        if self.step_count + 1 in poisoned:
            next(p for p in self._parameters if p.grad is not None).grad.fill_(math.nan)
        return real(self, loss)

    monkeypatch.setattr(Trainer, "_update", poison)
    recipe = tiny_recipe(train={"epochs": 1})
    if outcome == "fails":
        with pytest.raises(UserError, match="the run diverged: 4 of 6 steps were skipped"):
            train(tmp_path, recipe)
    else:
        train(tmp_path, recipe)
        assert "warning: 2 of 6 steps were skipped" in capsys.readouterr().err
    assert final_state(tmp_path / "run")["step"] == 6


@pytest.mark.parametrize("dry_run", [False, True])
def test_one_row_for_a_batch_norm_is_one_line(tmp_path: Path, dry_run: bool) -> None:
    head = {"name": "mlp", "layers": 2, "hidden": 16, "width": 16, "norm": "batch"}
    towers = {"image": {**IMAGE, "head": head}, "text": {**TEXT, "train": "none"}}
    recipe = tiny_recipe(
        towers=towers,
        distillers=[{"name": "simreg"}],
        train={"batch_size": 1, "steps": 1},
    )
    with pytest.raises(UserError) as caught:
        train(tmp_path, recipe, dry_run=dry_run)
    assert str(caught.value).startswith("a batch norm that is trained got one row")
    assert "Raise train.batch_size (now 1)" in str(caught.value)


def test_running_out_of_memory_names_step_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: Composition, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    monkeypatch.setattr(Composition, "forward", no_room)
    with pytest.raises(UserError) as caught:
        train(tmp_path, tiny_recipe())
    assert str(caught.value).startswith(
        "CUDA out of memory. Tried to allocate 2.00 GiB at step 1. Set train.chunk: 2,"
    )
    assert "accumulate is another step" in str(caught.value)


def test_the_best_checkpoint_is_of_the_watched_metric(tmp_path: Path) -> None:
    run = train(
        tmp_path, tiny_recipe(evals=SMALL_EVAL, train={"best": "retrieval.text_to_image_R@10"})
    )
    values = dict(read_metrics(run)["eval/retrieval.shapes.text_to_image_R@10"])
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    assert best["best"] == max(values.values()) == values[best["step"]]


def test_a_watched_metric_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="train.best: 'retrieval' has no metric 'top1'"):
        train(tmp_path, tiny_recipe(evals=SMALL_EVAL, train={"best": "retrieval.top1"}))


def test_a_run_that_watches_another_result_from_now_on_restarts_its_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watching(metric: str) -> dict[str, Any]:
        return tiny_recipe(evals=SMALL_EVAL, train={"best": f"retrieval.{metric}"})

    with monkeypatch.context() as patch:
        _stop_after(patch, 6)
        with pytest.raises(_Killed):
            train(tmp_path, watching("text_to_image_mean_rank"), "cut")
    best = tmp_path / "cut" / "checkpoints" / "best.pt"
    ranks = torch.load(best, weights_only=True)
    assert ranks["step"] == 6 and ranks["best"] > 1
    train(tmp_path, watching("text_to_image_R@10"), "cut", resume=str(tmp_path / "cut"))
    recalls = torch.load(best, weights_only=True)
    assert recalls["step"] == 12 and 0 < recalls["best"] <= 1


def test_a_run_of_another_recipe_is_not_continued(tmp_path: Path) -> None:
    run = train(tmp_path, tiny_recipe())
    with pytest.raises(
        CheckpointError,
        match=(
            r"was trained with optimizer.lr 0.001; this recipe has 0.1\. Continue with the run's"
            r" own recipe"
        ),
    ):
        train(tmp_path, tiny_recipe(optimizer={"lr": 0.1}), resume=str(run))


@pytest.mark.parametrize("saved", [True, False])
def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path, saved: bool) -> None:
    run = train(tmp_path, tiny_recipe(train={"steps": 1}))
    before = (run / "recipe.yaml").read_bytes()
    if not saved:
        shutil.rmtree(run / "checkpoints")
    with pytest.raises(
        CheckpointError, match=rf"{run} holds a run already\. Continue it with --resume {run}, or"
    ):
        train(tmp_path, tiny_recipe())
    assert (run / "recipe.yaml").read_bytes() == before


def test_a_folder_whose_run_failed_before_it_trained_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than the 4096 of one step"):
        train(tmp_path, tiny_recipe(train={"batch_size": 4096}))
    run = train(tmp_path, tiny_recipe(train={"steps": 1}))
    assert final_state(run)["step"] == 1


def test_a_dry_run_leaves_the_run_that_it_would_resume_alone(tmp_path: Path) -> None:
    run = train(tmp_path, tiny_recipe(train={"steps": 1}))
    with pytest.raises(UserError, match="--resume has no effect with --dry-run"):
        train(tmp_path, tiny_recipe(train={"steps": 1}), resume=str(run), dry_run=True)
    assert final_state(run)["step"] == 1


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    run = train(tmp_path, tiny_recipe(train={"steps": 1}))
    (run / "checkpoints" / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="last.pt is damaged or not a checkpoint"):
        train(tmp_path, tiny_recipe(train={"steps": 1}), resume=str(run))


@pytest.mark.parametrize("stop", [3, 12])
def test_a_signal_between_saving_and_the_next_step_is_saved_after_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    real = Run.due

    def due(self: Run, count: int) -> Due:
        if count == stop == self.trainer.total_steps:
            os.kill(os.getpid(), signal.SIGINT)
        answer = real(self, count)
        if count == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return answer

    recipe = tiny_recipe(evals=SMALL_EVAL, train={"save_every_epochs": None})
    whole = final_state(train(tmp_path, recipe, "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "due", due)
        train(tmp_path, recipe, "cut", expected=signal.SIGINT)
    stopped = final_state(tmp_path / "cut")
    assert stopped["step"] == min(stop + 1, 12) and stopped["evaluated"] == (stop == 3)
    resumed = final_state(train(tmp_path, recipe, "cut", resume=str(tmp_path / "cut")))
    assert differences(whole, resumed) == []
    assert (tmp_path / "cut" / "results" / "step_00000012").is_dir()


def test_a_run_stopped_before_its_first_save_is_resumed_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlkd_cli.engine import build

    def interrupted(*arguments: Any, **keys: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    recipe = tiny_recipe(train={"steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_towers", interrupted)
        train(tmp_path, recipe, "cut", expected=signal.SIGINT)
    assert "Stopped before the first step" in capsys.readouterr().out
    resumed = final_state(train(tmp_path, recipe, "cut", resume=str(tmp_path / "cut")))
    assert "no checkpoint yet: starting from the beginning" in capsys.readouterr().out
    assert differences(final_state(train(tmp_path, recipe, "whole")), resumed) == []


class _Killed(BaseException):
    """Replaces SIGKILL: nothing in the engine may catch it."""


def _stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    real = Run.evaluate

    def stop(self: Run, count: int) -> None:
        real(self, count)
        if count == step:
            raise _Killed

    patch.setattr(Run, "evaluate", stop)


def _pairs(folder: Path, rows: Mapping[int, str] | None = None) -> dict[str, Any]:
    """24 pictures and a table of their captions, some of whose rows are given; returned as a
    recipe's `data:`."""
    lines = ["filepath\ttitle"]
    for number in range(24):
        Image.new("RGB", (32, 32), (number * 10, 0, 0)).save(folder / f"{number}.png")
        lines.append((rows or {}).get(number, f"{number}.png\tpicture {number}"))
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return {"reader": "csv", "path": str(folder / "pairs.tsv"), "workers": 0}


@pytest.mark.parametrize("cache", [False, True])
def test_a_broken_image_is_replaced_and_named_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    data = {**_pairs(tmp_path), "augment": {"name": "none"}}
    (tmp_path / "7.png").write_bytes(b"no picture")
    recipe = {**tiny_recipe(train={"epochs": 1}), "data": data}
    if cache:
        frozen = {"head": {"name": "linear", "width": 16}, "train": "head", "cache": True}
        recipe["towers"] = {"image": {**IMAGE, **frozen}, "text": {**TEXT, **frozen}}
    run = train(tmp_path, recipe)
    header, line = (run / "skipped.csv").read_text().splitlines()
    assert header == "sample,reason" and "7.png" in line and final_state(run)["step"] == 3


@pytest.mark.parametrize("stored", [False, True])
def test_rows_without_a_readable_caption_are_replaced_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    data = _pairs(tmp_path, {5: "5.png", 9: "9.png\t "})
    text = {**TEXT, "train": "none", "cache": stored}
    run = train(
        tmp_path,
        {
            **tiny_recipe(train={"epochs": 1}),
            "towers": {"image": IMAGE, "text": text},
            "data": data,
        },
    )
    reasons = sorted(
        {
            line.partition(",")[2].rpartition("/")[2]
            for line in (run / "skipped.csv").read_text().splitlines()[1:]
        }
    )
    assert [reason.strip('"') for reason in reasons] == [
        "has no caption",
        "pairs.tsv row 6 has 1 columns, the header 2",
    ]
    assert final_state(run)["step"] == 3


def test_captions_that_cannot_be_read_teach_a_tokenizer_nothing() -> None:
    class Partly(FakeReader):
        def captions(self, index: int) -> list[str]:
            if index == 1:
                raise Broken("cannot be read")
            return [f"caption {index}"]

    captions = captions_of(Partly([0, 0, 0]))
    assert captions is not None and list(captions()) == ["caption 0", "caption 2"]


def test_channels_last_trains_the_same(tmp_path: Path) -> None:
    plain, last = (
        read_metrics(train(tmp_path, tiny_recipe(train={"channels_last": k, "epochs": 1}), str(k)))[
            "train/loss"
        ]
        for k in (False, True)
    )
    assert [value for _, value in last] == pytest.approx([value for _, value in plain], rel=1e-4)


def test_synchronized_batch_norm_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.sync_batch_norm: .* GPUs only"):
        train(tmp_path, tiny_recipe(train={"sync_batch_norm": True}))


@pytest.mark.parametrize(
    ("distiller", "message"),
    [
        (
            {"name": "cross_entropy", "num_classes": 3},
            "the data has labels up to 47, .* Set num_classes: 48",
        ),
        (
            {"name": "protoclip", "num_prototypes": 49},
            "forms 49 clusters, but an episode has only 48 samples",
        ),
    ],
)
def test_data_that_an_objective_cannot_learn_from_is_refused_before_the_first_step(
    tmp_path: Path, distiller: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, tiny_recipe(distillers=[{"name": "infonce"}, distiller]))
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_widths_known_after_building_are_reported_with_file_line_and_towers(tmp_path: Path) -> None:
    wide = {**TEXT, "config": {**TEXT["config"], "width": 24}}
    text = f"{tmp_path}/tiny.yaml"
    with pytest.raises(RecipeError) as error:
        train(tmp_path, tiny_recipe(towers={"text": wide}), dry_run=True)
    line = next(
        number
        for number, written in enumerate(Path(text).read_text().splitlines(), start=1)
        if "infonce" in written
    )
    assert str(error.value) == (
        f"{text}:{line}: distillers[0]: tower 'text' embeds 24 values, tower 'image' 16, and"
        " distiller 'infonce' compares them directly. Add `head: {name: linear, width: 24}` to"
        " 'image'."
    )


def test_widths_that_letters_cannot_tell_name_place_and_addresses(tmp_path: Path) -> None:
    wide = {**TEXT, "config": {**TEXT["config"], "width": 24}, "train": "none"}
    distillers = [{"name": "compress", "num_queues": 1, "queue_size": 8}]
    with pytest.raises(
        RecipeError,
        match=r"tiny.yaml:\d+: distillers\[0\]: student image, teacher text: the teacher embeds 24"
        r" values, the student 16, and distiller 'compress' compares them directly. Add `head:",
    ):
        train(tmp_path, tiny_recipe(towers={"text": wide}, distillers=distillers), dry_run=True)


def test_a_step_of_one_row_is_refused_where_rows_are_contrasted(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'infonce' needs at least 2 samples a step over all"):
        train(tmp_path, tiny_recipe(train={"batch_size": 1}), dry_run=True)


def test_the_momentum_variant_of_compress_trains(tmp_path: Path) -> None:
    run = train(
        tmp_path,
        tiny_recipe(
            towers={
                "text": {**TEXT, "train": "none"},
                "image_momentum": {"follows": "image", "momentum": 0.9},
            },
            distillers=[
                {"name": "compress", "student": ["image", "image_momentum"], "queue_size": 16}
            ],
            train={"epochs": 1},
        ),
    )
    assert final_state(run)["step"] == 6


@pytest.mark.slow
def test_a_compiled_composition_trains_the_same(tmp_path: Path) -> None:
    towers = {
        "text": {**TEXT, "head": {"name": "linear", "width": 16}}
    }  # without dropout, whose draws the compiler orders otherwise
    plain, compiled = (
        read_metrics(
            train(tmp_path, tiny_recipe(towers=towers, train={"compile": k, "steps": 2}), str(k))
        )["train/loss"]
        for k in (False, True)
    )
    assert [value for _, value in compiled] == pytest.approx(
        [value for _, value in plain], rel=1e-3
    )


def test_a_run_reports_how_it_ended(tmp_path: Path) -> None:
    recipe = tiny_recipe(evals=SMALL_EVAL, train={"best": "retrieval.mean_recall"})
    run = train(tmp_path, recipe)
    state = json.loads((run / "state.json").read_text())
    values = dict(read_metrics(run)["eval/retrieval.shapes.mean_recall"])
    assert (state["state"], state["step"], state["total_steps"]) == ("finished", 12, 12)
    assert state["best"] == max(values.values())
    assert values[state["best_step"]] == state["best"]


def test_a_failed_run_names_its_error(tmp_path: Path) -> None:
    recipe = tiny_recipe(train={"max_nonfinite_steps": 1}, optimizer={"lr": 1e30})
    with pytest.raises(UserError):
        train(tmp_path, recipe)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["state"] == "failed"
    assert state["error"].startswith("loss or gradient was not finite")
