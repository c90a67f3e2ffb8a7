"""The recipes under recipes/small and what each is compared with, over several seeds: the figures
of their headers and of docs/small_recipes.md.

    python benchmarks/small_recipes.py [NAME ...] [--seeds 0 1 2] [--folder FOLDER] [--markdown]

Runs the commands that the headers give after `Before` (once), `Command` and `Against`, the last two
with `--set train.seed=N` for each seed. What the folder holds already is not trained again unless
its recipe changed. Prints the mean over the seeds and the standard deviation (n - 1) of each
metric, and the mean CPU seconds of a run, evaluations included; exits with 1 where a recipe stays
below twice its chance.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import timm  # noqa: F401  imported for the forks
import torch
import transformers  # noqa: F401

from vlkd_cli.app import main as main_of_vlkd
from vlkd_cli.console import print_table
from vlkd_cli.recipe.shipped import shipped_recipe, shipped_recipes

METRICS = {
    "zero-shot top-1": "zero_shot.top1",
    "mean recall": "retrieval.mean_recall",
    "k-NN top-1": "knn.k20_top1",
}


class Commands(NamedTuple):
    """The commands in the header of a small recipe."""

    before: list[str]
    own: str
    against: list[str]


class Outcome(NamedTuple):
    """Of one run: metrics after the last step, those before the first, and CPU seconds."""

    last: dict[str, float]
    first: dict[str, float]
    chance: dict[str, float]
    seconds: float


def commands_of(path: Path) -> Commands:
    """The commands in a recipe's header, by the word that its line begins with."""
    found: dict[str, list[str]] = {"Before": [], "Command": [], "Against": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, _, command = line.removeprefix("# ").partition(" ")
        if line.startswith("# ") and word in found:
            found[word].append(command.strip())
    return Commands(found["Before"], found["Command"][0], found["Against"])


def outcome_of(command: str, seed: int | None = None) -> Outcome:
    """Run a command in a fork, unless it has been run before with the same recipe."""
    words = shlex.split(command)[1:]
    if seed is not None:
        words += ["--set", f"train.seed={seed}"]
    if "--run" not in words:
        digest = zlib.crc32(shlex.join(words).encode())
        words += ["--run", f"runs/{words[1].replace('/', '_')}-{digest:08x}"]
    run = Path(words[words.index("--run") + 1])
    done = run.with_suffix(".json")
    asked = [*words, shipped_recipe(words[1]).read_text(encoding="utf-8").partition("towers:")[2]]
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return _read(run, found["seconds"])
    print(f"vlkd {shlex.join(words)}", file=sys.stderr, flush=True)
    seconds = train(run, words)
    done.write_text(json.dumps({"asked": asked, "seconds": seconds}), encoding="utf-8")
    return _read(run, seconds)


def train(run: Path, words: Sequence[str]) -> float:
    """Run vlkd in a fork, so that nothing is imported twice; CPU seconds."""
    if run.exists():
        raise SystemExit(f"{run.resolve()} is of another recipe or did not finish. Remove it.")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            torch.set_num_threads(1)
            main_of_vlkd([*words, "--quiet"])
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    if status != 0:
        raise SystemExit(f"vlkd {shlex.join(words)} failed.")
    return used.ru_utime + used.ru_stime


def _read(run: Path, seconds: float) -> Outcome:
    steps = sorted((run / "results").iterdir())
    last, chance = _metrics(steps[-1])
    return Outcome(last, _metrics(steps[0])[0] if len(steps) > 1 else {}, chance, seconds)


def _metrics(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    values, chance = {}, {}
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        for title, metric in METRICS.items():
            suite, name = metric.split(".")
            if result["suite"] == suite:
                values[title], chance[title] = result["metrics"][name], result["chance"][name]
    return values, chance


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def rows_of(command: str, outcomes: Sequence[Outcome]) -> list[list[str]]:
    """The table's row of a command; another one of its towers before training where measured."""
    seconds = statistics.mean(outcome.seconds for outcome in outcomes)
    last = [[one.last[title] for one in outcomes if title in one.last] for title in METRICS]
    first = [[one.first[title] for one in outcomes if title in one.first] for title in METRICS]
    rows = [[_short(command), *map(spread, last), f"{seconds:.0f}"]]
    return [*rows, ["before training", *map(spread, first), ""]] if any(first) else rows


def _short(command: str) -> str:
    """Recipe and settings, long values left out."""
    words = shlex.split(command.removeprefix("vlkd train small/"))
    short = [word if len(word) < 80 else f"{word.partition('=')[0]}=..." for word in words]
    return f"`{' '.join(short)}`"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    small = [name for name in shipped_recipes() if name.startswith("small/")]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(small))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("small_recipes"))
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    rows, fine, seen = [], True, set()
    for name in options.names or small:
        commands = commands_of(shipped_recipe(name))
        for command in commands.before:
            outcome_of(command)
        for command in (commands.own, *commands.against):
            if command in seen:
                continue
            seen.add(command)
            outcomes = [outcome_of(command, seed) for seed in options.seeds]
            rows += [row for row in rows_of(command, outcomes) if row not in rows]
            if command == commands.own:
                fine &= all(
                    value > 2 * one.chance[title]
                    for one in outcomes
                    for title, value in one.last.items()
                )
    columns = ["recipe", *METRICS, "CPU seconds"]
    if options.markdown:
        print(f"| {' | '.join(columns)} |\n|---{'|---:' * (len(columns) - 1)}|")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    else:
        print_table("small recipes", columns, rows)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
