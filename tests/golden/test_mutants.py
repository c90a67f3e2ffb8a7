"""The golden traces and the tests of the trainer notice what they are there to notice.

Each mutant is a plausible mistake in the training loop. A trace has to differ under it, and a
direct test has to fail, so that both parts of the net are known to hold.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.golden.record_traces import load_traces
from tests.golden.trace_recipes import trace_recipe
from tests.support.mutants import mutated
from tests.support.traces import read_trace, stop_and_resume, trace_differences, train

UNIT = Path(__file__).resolve().parents[1] / "unit"
TRAINER = UNIT / "engine" / "test_trainer.py"
COMPOSITION = UNIT / "composition" / "test_composition.py"
STOP = 9


@dataclass(frozen=True)
class Mutant:
    """A mistake and what has to notice it.

    Args:
        edits: text of the package -> what it is replaced by.
        family: whose trace has to differ; None where no trace meets such a step.
        direct: the test file of which a test has to fail; None where only a whole run can tell.
        after_resume: the mistake is there only in the second half of a stopped and resumed run.
    """

    edits: dict[str, str]
    family: str | None
    direct: Path | None = TRAINER
    after_resume: bool = False


STEP, COMMIT = "self.scaler.step(self.optimizer)", "self.composition.commit(self.progress)"
FOLLOW, OWN = "1 - progress.value(self.momentum)", "[own for own, _ in pairs]"
FOLLOWED = "[other for _, other in pairs]"
RATES = "set_rates(self.optimizer, self.schedule, self.progress)"
MUTANTS = {
    "division by the accumulation count removed": Mutant(
        {"output.loss / len(batches)": "output.loss"}, "queue"
    ),
    "schedule ignored": Mutant({RATES: "pass"}, "lit"),
    "schedule one step ahead": Mutant(
        {RATES: RATES.replace("self.progress", "self.progress._replace(step=self.step_count + 1)")},
        "lit",
    ),
    "clipping off": Mutant({"if limit is not None and norm": "if False and norm"}, "infonce"),
    "average's decay swapped": Mutant({"1 - self.decay": "self.decay"}, "queue"),
    "average never updated": Mutant({"self.ema.update()": "pass"}, "queue"),
    "commit before the optimizer's step": Mutant({STEP: COMMIT, COMMIT: STEP}, "queue"),
    "commit left out": Mutant({COMMIT: "pass"}, "queue"),
    "gradients not cleared": Mutant(
        {"            parameter.grad = None\n        self": "            pass\n        self"},
        "infonce",
    ),
    "gradients not unscaled": Mutant({"self.scaler.unscale_(self.optimizer)": "pass"}, None),
    "non-finite steps taken": Mutant({"if math.isfinite(norm):": "if True:"}, None),
    "random numbers the same at every step": Mutant(
        {'"step", self.step_count, position': '"step", 0, position'}, "infonce"
    ),
    "follower jumps where it should stay": Mutant(
        {FOLLOW: "progress.value(self.momentum)"}, "queue", COMPOSITION
    ),
    "tower follows its follower": Mutant({OWN: FOLLOWED, FOLLOWED: OWN}, "queue", COMPOSITION),
    "follower flees its tower": Mutant(
        {FOLLOW: "progress.value(self.momentum) - 1"}, "queue", COMPOSITION
    ),
    "weights of objectives ignored": Mutant(
        {"progress.value(objective.weight) * term": "term"}, "pair", COMPOSITION
    ),
    "shuffling off": Mutant({"if not self.shuffle:": "if True:"}, "infonce", None),
    "shuffling off after resume": Mutant(
        {"if not self.shuffle:": "if True:"}, "infonce", None, after_resume=True
    ),
    "epoch begins again after resume": Mutant(
        {"start=done * accumulate": "start=0"}, "queue", None, after_resume=True
    ),
    "optimizer's state forgotten after resume": Mutant(
        {"restore_optimizer(self.optimizer, checkpoint.optimizer)": "pass"},
        "lit",
        None,
        after_resume=True,
    ),
    "average forgotten after resume": Mutant(
        {"self.ema.load_state_dict(checkpoint.ema)": "pass"}, "queue", None, after_resume=True
    ),
    "follower forgotten after resume": Mutant(
        {
            "divided_state(checkpoint.followers, composition.followers)": (
                "composition.followers.state_dict()"
            )
        },
        "queue",
        None,
        after_resume=True,
    ),
    "queues forgotten after resume": Mutant(
        {"composition.distillers.load_state_dict(checkpoint.distillers)": "pass"},
        "queue",
        None,
        after_resume=True,
    ),
}


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.family])
def test_a_trace_differs_under(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    assert mutant.family is not None
    recipe = trace_recipe(mutant.family, tmp_path)
    with ExitStack() as stack:
        if mutant.after_resume:
            halves = stop_and_resume(recipe, tmp_path, STOP)
            next(halves)
            stack.enter_context(mutated(mutant.edits))
            run = next(halves)
        else:
            stack.enter_context(mutated(mutant.edits))
            run = train(recipe, tmp_path)
    assert trace_differences(load_traces()[mutant.family]["1"], read_trace(run)) != []


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.direct])
def test_a_direct_test_fails_under(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    mutant = MUTANTS[name]
    with mutated(mutant.edits):
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", str(mutant.direct)])
    capsys.readouterr()
    assert status == pytest.ExitCode.TESTS_FAILED


@pytest.mark.slow
@pytest.mark.parametrize("path", [TRAINER, COMPOSITION], ids=lambda path: path.stem)
def test_direct_tests_pass_without_a_mutant(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pytest.main(["-x", "-q", "-p", "no:cacheprovider", str(path)]) == pytest.ExitCode.OK
    capsys.readouterr()


def test_an_edit_that_changes_nothing_changes_no_number(tmp_path: Path) -> None:
    with mutated({STEP: STEP, COMMIT: COMMIT}):
        run = train(trace_recipe("queue", tmp_path), tmp_path)
    assert trace_differences(load_traces()["queue"]["1"], read_trace(run)) == []
