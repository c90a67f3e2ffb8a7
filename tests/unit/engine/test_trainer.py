"""One optimizer step on small tensors, without towers: what is applied, and in which order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlkd_cli.composition.composition import StepOutput
from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.schema import ScheduleSpec, TrainSpec
from vlkd_cli.recipe.types import Progress, Schedule

START = [0.5, -1.0, 2.0]


class Line(nn.Module):
    """Replaces a composition: fits `x @ weight` to y, and has a queue of mean inputs.

    `events` lists what happened to it, with the weight at that moment.
    """

    queue: Tensor

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.towers, self.followers, self.distillers = (nn.ModuleDict() for _ in range(3))
        self.weight = nn.Parameter(torch.tensor(START))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("queue", torch.zeros(3))
        self.staged: list[Tensor] = []
        self.events: list[tuple[str, list[float]]] = []

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        x, y = batch.inputs["x"], batch.inputs["y"]
        assert isinstance(x, Tensor) and isinstance(y, Tensor)
        self.staged.append(x.mean(0))
        loss = (self.dropout(x) @ self.weight - y).square().mean() / 2
        return StepOutput(loss, {"fit": loss.detach()})

    def commit(self, progress: Progress) -> None:
        self.note("commit")
        self.queue += torch.stack(self.staged).sum(0)
        self.staged = []

    def discard(self) -> None:
        self.note("discard")
        self.staged = []

    def note(self, event: str) -> None:
        self.events.append((event, self.weight.tolist()))


class RecordingScaler:
    """Multiplies losses by 8 and divides gradients by it, as the fp16 scaler does."""

    factor = 8.0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def scale(self, loss: Tensor) -> Tensor:
        self.calls.append("scale")
        return loss * self.factor

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls.append("unscale")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.factor

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls.append("step")
        optimizer.step()

    def update(self) -> None:
        self.calls.append("update")


def make_trainer(
    *,
    lr: float = 0.1,
    momentum: float = 0.0,
    schedule: dict[str, Any] | None = None,
    total_steps: int = 6,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Trainer, Line]:
    """A trainer of a Line by SGD, at a constant rate unless there is a schedule."""
    line = Line(dropout)
    optimizer = torch.optim.SGD(
        [{"params": [line.weight], "lr": lr, "base_lr": lr}], lr=lr, momentum=momentum
    )
    plan = ScheduleSpec.model_validate(schedule or {"name": "constant"})
    cpu = torch.device("cpu")
    keys = {"steps_per_epoch": 3, "total_steps": total_steps}
    spec = TrainSpec.model_validate(settings)
    return Trainer(line, optimizer, None, spec, plan, cpu, **keys), line  # type: ignore[arg-type]


def batch(seed: int, rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 3, generator=generator), torch.randn(rows, generator=generator)
    return Batch({"x": x, "y": y}, torch.arange(rows), torch.full((rows,), -1))


def broken_batch(value: float = math.nan) -> Batch:
    poisoned = batch(0)
    x = poisoned.inputs["x"]
    assert isinstance(x, Tensor)
    x[0, 0] = value
    return poisoned


def gradient(weight: Tensor, *batches: Batch) -> Tensor:
    """By hand: the gradient of the loss over all rows of all batches."""
    x = torch.cat([each.inputs["x"] for each in batches])  # type: ignore[misc]
    y = torch.cat([each.inputs["y"] for each in batches])  # type: ignore[misc]
    return x.T @ (x @ weight - y) / len(x)


def step(trainer: Trainer, *batches: Batch) -> tuple[StepOutput, float]:
    """One step, counted as the loop counts it."""
    answer = trainer.step(list(batches))
    trainer.step_count += 1
    return answer


# -- accumulation --------------------------------------------------------------------------------


def test_accumulated_gradients_are_those_of_their_mean() -> None:
    trainer, line = make_trainer(accumulate=3)
    batches = [batch(1), batch(2), batch(3)]
    mean = gradient(torch.tensor(START), *batches)
    _, norm = trainer.step(batches)
    torch.testing.assert_close(line.weight.data, torch.tensor(START) - 0.1 * mean)
    assert norm == pytest.approx(mean.norm().item(), rel=1e-6)


def test_the_loss_of_an_accumulation_is_the_mean_of_its_batches() -> None:
    losses = [make_trainer()[0].step([batch(seed)])[0].loss.item() for seed in (1, 2)]
    output, _ = make_trainer(accumulate=2)[0].step([batch(1), batch(2)])
    assert output.loss.item() == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert output.terms["fit"].item() == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_gradients_of_one_step_do_not_reach_the_next() -> None:
    trainer, line = make_trainer()
    step(trainer, batch(1))
    before = line.weight.detach().clone()
    step(trainer, batch(2))
    torch.testing.assert_close(line.weight.data, before - 0.1 * gradient(before, batch(2)))


# -- clipping ------------------------------------------------------------------------------------


def test_a_larger_gradient_is_rescaled_to_the_limit_and_its_own_norm_is_reported() -> None:
    trainer, line = make_trainer(clip_grad_norm=0.25)
    full = gradient(torch.tensor(START), batch(1))
    assert full.norm() > 0.5
    _, norm = trainer.step([batch(1)])
    torch.testing.assert_close(
        line.weight.data, torch.tensor(START) - 0.1 * 0.25 * full / full.norm()
    )
    assert norm == pytest.approx(full.norm().item(), rel=1e-6)


def test_a_gradient_below_the_limit_is_applied_as_it_is() -> None:
    trainer, line = make_trainer(clip_grad_norm=100.0)
    start = torch.tensor(START)
    trainer.step([batch(1)])
    torch.testing.assert_close(line.weight.data, start - 0.1 * gradient(start, batch(1)))


def test_the_mean_of_an_accumulation_is_clipped_and_not_each_batch() -> None:
    trainer, line = make_trainer(clip_grad_norm=0.25, accumulate=2)
    mean = gradient(torch.tensor(START), batch(1), batch(2))
    trainer.step([batch(1), batch(2)])
    wanted = torch.tensor(START) - 0.1 * 0.25 * mean / mean.norm()
    torch.testing.assert_close(line.weight.data, wanted)


# -- schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ({"name": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"name": "linear", "end_factor": 0.4}, [1, 0.9, 0.8, 0.7, 0.6, 0.5]),
        (
            {"name": "cosine", "warmup_epochs": 1},
            [
                1 / 3,
                2 / 3,
                1,
                1,
                (1 + math.cos(math.pi / 3)) / 2,
                (1 + math.cos(math.pi / 1.5)) / 2,
            ],
        ),
    ],
)
def test_each_step_applies_the_rate_of_the_schedule(
    schedule: dict[str, Any], factors: list[float]
) -> None:
    trainer, line = make_trainer(schedule=schedule)
    for number, factor in enumerate(factors):
        before = line.weight.detach().clone()
        step(trainer, batch(number))
        moved = before - line.weight.detach()
        torch.testing.assert_close(moved, 0.1 * factor * gradient(before, batch(number)))


def test_the_schedule_multiplies_the_rate_of_each_group() -> None:
    trainer, _ = make_trainer(schedule={"name": "linear", "warmup_steps": 2})
    other = nn.Parameter(torch.ones(()))
    other.grad = torch.ones(())
    trainer.optimizer.add_param_group({"params": [other], "lr": 9.0, "base_lr": 0.01})
    trainer.step([batch(0)])
    assert other.item() == pytest.approx(1 - 0.5 * 0.01)


def test_a_group_that_starts_later_is_neither_moved_nor_counted_in_the_norm() -> None:
    trainer, _ = make_trainer()
    other = nn.Parameter(torch.ones(2))
    group = {"params": [other], "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.5, "start": 1}
    trainer.optimizer.add_param_group(group)
    trainer._parameters.append(other)
    wanted = gradient(torch.tensor(START), batch(1)).norm().item()
    other.grad = torch.full((2,), 100.0)
    _, norm = step(trainer, batch(1))
    assert norm == pytest.approx(wanted, rel=1e-6) and other.tolist() == [1, 1]
    other.grad = torch.full((2,), 100.0)
    _, norm = step(trainer, batch(1))
    assert norm > 100 and other.tolist() == pytest.approx([1 - 0.1 * 100.5] * 2)


def test_a_scheduled_weight_decay_is_that_of_the_step() -> None:
    trainer, line = make_trainer(total_steps=3)
    trainer.optimizer.param_groups[0]["decay"] = Schedule(linear=(0.0, 0.4))
    for number, decay in enumerate([0.0, 0.2, 0.4]):
        before = line.weight.detach().clone()
        step(trainer, batch(number))
        wanted = before - 0.1 * (gradient(before, batch(number)) + decay * before)
        torch.testing.assert_close(line.weight.data, wanted)


# -- averages ------------------------------------------------------------------------------------


def test_the_average_after_two_updates_is_that_of_its_definition() -> None:
    trainer, line = make_trainer(ema=0.9)
    weights = [torch.tensor(START)]
    for seed in (1, 2):
        step(trainer, batch(seed))
        weights.append(line.weight.detach().clone())
    once = 0.9 * weights[0] + 0.1 * weights[1]
    twice = 0.9 * once + 0.1 * weights[2]
    torch.testing.assert_close(average(trainer), twice)


def test_an_accumulation_updates_the_average_once() -> None:
    trainer, line = make_trainer(ema=0.9, accumulate=2)
    trainer.step([batch(1), batch(2)])
    wanted = 0.9 * torch.tensor(START) + 0.1 * line.weight.detach()
    torch.testing.assert_close(average(trainer), wanted)


def average(trainer: Trainer) -> Tensor:
    assert trainer.ema is not None
    (value,) = trainer.ema.state_dict().values()
    return value.clone()


# -- skipped steps -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted(
    value: float, position: int
) -> None:
    trainer, line = make_trainer(ema=0.9, accumulate=2, momentum=0.9)
    step(trainer, batch(1), batch(2))
    before = line.weight.tolist(), line.queue.tolist(), average(trainer).tolist()
    velocity = trainer.optimizer.state[line.weight]["momentum_buffer"].tolist()
    batches = [batch(3), batch(4)]
    batches[position] = broken_batch(value)
    _, norm = step(trainer, *batches)
    assert not math.isfinite(norm) and trainer.skipped_steps == 1
    assert (line.weight.tolist(), line.queue.tolist(), average(trainer).tolist()) == before
    assert trainer.optimizer.state[line.weight]["momentum_buffer"].tolist() == velocity
    assert [event for event, _ in line.events] == ["commit", "discard"]


def test_a_step_after_a_skipped_one_sees_nothing_of_it() -> None:
    trainer, line = make_trainer()
    step(trainer, broken_batch())
    step(trainer, batch(1))
    start = torch.tensor(START)
    torch.testing.assert_close(line.weight.data, start - 0.1 * gradient(start, batch(1)))
    x = batch(1).inputs["x"]
    assert isinstance(x, Tensor)
    torch.testing.assert_close(line.queue, x.mean(0))


def test_too_many_skipped_steps_in_a_row_stop_the_run_and_a_good_one_starts_the_count_again() -> (
    None
):
    trainer, _ = make_trainer(max_nonfinite_steps=3)
    for each in (broken_batch(), broken_batch(), batch(1), broken_batch(), broken_batch()):
        step(trainer, each)
    with pytest.raises(UserError, match="not finite for 3 consecutive steps, the last at step 6"):
        step(trainer, broken_batch())
    assert trainer.skipped_steps == 5


# -- gradient scaling ----------------------------------------------------------------------------


def test_gradients_are_unscaled_before_they_are_clipped_and_applied() -> None:
    trainer, line = make_trainer(clip_grad_norm=0.25, accumulate=2)
    trainer.scaler = scaler = RecordingScaler()  # type: ignore[assignment]
    mean = gradient(torch.tensor(START), batch(1), batch(2))
    output, norm = trainer.step([batch(1), batch(2)])
    wanted = torch.tensor(START) - 0.1 * 0.25 * mean / mean.norm()
    torch.testing.assert_close(line.weight.data, wanted)
    assert norm == pytest.approx(mean.norm().item(), rel=1e-6)
    assert output.loss.item() == pytest.approx(output.terms["fit"].item()), "the loss is not scaled"
    assert scaler.calls == ["scale", "scale", "unscale", "step", "update"]


def test_a_scaler_hears_of_a_skipped_step_and_takes_none() -> None:
    trainer, _ = make_trainer()
    trainer.scaler = scaler = RecordingScaler()  # type: ignore[assignment]
    trainer.step([broken_batch()])
    assert scaler.calls == ["scale", "unscale", "update"]


def test_the_scaler_of_fp16_halves_its_factor_after_an_overflow() -> None:
    trainer, line = make_trainer(precision="fp16")
    assert trainer.scaler.is_enabled()
    first = trainer.scaler.get_scale()
    step(trainer, broken_batch(math.inf))
    assert trainer.scaler.get_scale() == first / 2 and line.weight.tolist() == START


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_are_not_scaled(precision: str) -> None:
    assert not make_trainer(precision=precision)[0].scaler.is_enabled()


# -- order ---------------------------------------------------------------------------------------


def test_each_optimizer_step_is_followed_by_one_commit() -> None:
    trainer, line = make_trainer(accumulate=2, ema=0.9)
    trainer.optimizer.register_step_post_hook(lambda *_: line.note("optimizer"))
    step(trainer, batch(1), batch(2))
    step(trainer, batch(3), batch(4))
    assert [event for event, _ in line.events] == ["optimizer", "commit"] * 2
    (_, after_first), (_, at_first), (_, after_second), (_, at_second) = line.events
    assert at_first == after_first != START and at_second == after_second != after_first
    means = [batch(seed).inputs["x"].mean(0) for seed in (1, 2, 3, 4)]  # type: ignore[union-attr]
    torch.testing.assert_close(line.queue, torch.stack(means).sum(0))


def test_the_average_takes_in_what_a_commit_changed() -> None:
    class Clamped(Line):
        def commit(self, progress: Progress) -> None:
            super().commit(progress)
            self.weight.data.clamp_(max=1.0)

    trainer, line = make_trainer(ema=0.5)
    line.__class__ = Clamped
    trainer.step([batch(1)])
    assert line.weight.max() == 1.0
    torch.testing.assert_close(average(trainer), (torch.tensor(START) + line.weight.data) / 2)


# -- random numbers ------------------------------------------------------------------------------


def test_dropout_depends_on_seed_step_and_position_and_not_on_what_came_before() -> None:
    def losses(start: int, seed: int = 0) -> list[float]:
        trainer, _ = make_trainer(dropout=0.5, seed=seed, lr=1e-30)
        trainer.step_count = start
        torch.rand(start + seed)
        return [step(trainer, batch(1))[0].loss.item() for _ in range(start, 4)]

    whole = losses(0)
    assert len(set(whole)) == 4, "each step has its own"
    assert losses(2) == whole[2:], "a resumed run has those of the whole one"
    assert losses(0, seed=1) != whole
    trainer, _ = make_trainer(dropout=0.5, accumulate=2, lr=1e-30)
    output, _ = trainer.step([batch(1), batch(1)])
    assert output.loss.item() != pytest.approx(whole[0]), "batches of a step have their own"
