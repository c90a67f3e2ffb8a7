"""How quickly `vlkd --help` answers, against a bare typer + rich program; and that it imports
neither torch nor pydantic nor yaml.

    python benchmarks/startup.py [--rounds 15]

Prints the median CPU and wall time of both programs, taken in turns, and their ratios. Exits with 1
where the CPU ratio is above 2.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HIGHEST_RATIO = 2.0
SLOW = ("torch", "torchvision", "transformers", "open_clip", "numpy", "pydantic", "yaml")

BARE = '''
import typer

app = typer.Typer()


@app.command()
def train(recipe: str, gpus: int = 1) -> None:
    """Train."""


@app.command("eval")
def evaluate(run: str, suite: str = "zero_shot") -> None:
    """Evaluate."""


app()
'''

LOADED = (
    "import sys; from vlkd_cli.app import main\ntry: main(['--help'])\nexcept SystemExit:"
    " pass\nprint('LOADED', *sys.modules)"
)


class Times(NamedTuple):
    """Seconds of one process."""

    cpu: float
    wall: float


def measured(command: list[str]) -> Times:
    """CPU time (user and system) and wall time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Times(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def slow_imports() -> list[str]:
    """Packages of SLOW that `vlkd --help` imports."""
    output = subprocess.run(
        [sys.executable, "-c", LOADED],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    loaded = output.rpartition("LOADED ")[2].split()
    return [name for name in SLOW if name in loaded]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        programs = {
            "vlkd --help": [sys.executable, "-m", "vlkd_cli", "--help"],
            "bare typer + rich": [sys.executable, str(bare), "--help"],
        }
        times: dict[str, list[Times]] = {name: [] for name in programs}
        for number in range(rounds + 1):
            for name, command in programs.items():
                taken = measured(command)
                # The first round fills the file cache and the .pyc files.
                if number:
                    times[name].append(taken)
    medians = {
        name: Times(*(statistics.median(column) for column in zip(*taken, strict=True)))
        for name, taken in times.items()
    }
    for name, median in medians.items():
        print(f"{name:20} CPU {median.cpu * 1000:6.0f} ms   wall {median.wall * 1000:6.0f} ms")
    ours, theirs = medians.values()
    ratio = ours.cpu / theirs.cpu
    print(
        f"{'ratio':20} CPU {ratio:6.2f}      wall {ours.wall / theirs.wall:6.2f}      (at most"
        f" {HIGHEST_RATIO} wanted)"
    )
    found = slow_imports()
    print(f"imported although slow: {', '.join(found) or 'nothing'}")
    return int(ratio > HIGHEST_RATIO or bool(found))


if __name__ == "__main__":
    sys.exit(main())
