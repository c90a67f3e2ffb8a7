"""Damaged and mutated inputs end in success or in one line: never in a traceback, a hang or more
than 1 GiB.

Small and seeded; `python -m tests.support.fuzz FAMILY:FIRST:COUNT` tries other seeds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzz import FAMILIES

CASES = {
    "recipes": 70,
    "tables": 35,
    "shards": 25,
    "images": 30,
    "checkpoints": 20,
    "caches": 15,
    "runs": 12,
}


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """What went wrong, by family and seed. One process tries all, so that torch is imported once
    and what a case breaks in it is not this process."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.fuzz"),
            *(f"{name}:0:{count}" for name, count in CASES.items()),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def test_200_inputs_of_every_family_are_tried():
    assert set(CASES) == set(FAMILIES)
    assert sum(CASES.values()) >= 200


@pytest.mark.parametrize("family", CASES)
def test_mutated_inputs_end_in_success_or_one_line(family: str, found: dict[str, str]):
    assert {seed: message for seed, message in found.items() if seed.startswith(f"{family}:")} == {}
