"""Small towers learn from real pictures without labels: rows of the table in
docs/self_supervision.md, with one seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "self_supervision_learns.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", ["rotation", "simclr", "mae"])
def test_a_tower_is_better_than_untrained_by_as_much_as_its_row_asks(
    recipe: str, shared: Path, tmp_path: Path
) -> None:
    data = ["--omniglot", shared / "data/omniglot/images_background_small1.zip"]
    data += ["--digits", shared / "data/mnist_t10k_half"]
    command = [sys.executable, PROGRAM, *data, "--only", recipe, "--seeds", "0", "--out", tmp_path]
    done = subprocess.run(map(str, command), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
