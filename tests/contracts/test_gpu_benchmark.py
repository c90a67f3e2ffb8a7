"""The benchmark's own code, with small sizes, wherever the tests run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def rows(folder: Path, *sections: str) -> list[dict[str, object]]:
    """The rows of a run."""
    command = [sys.executable, str(PROGRAM), "--tiny", "--seconds", "600", "--out", str(folder)]
    subprocess.run([*command, "--sections", *sections], check=True, capture_output=True)
    found = json.loads((folder / "gpu.json").read_text())["rows"]
    assert len((folder / "gpu.md").read_text().splitlines()) == len(found) + 4
    return list(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "count"),
    [
        ("rates", 4),
        ("steps", 6),
        ("losses", 24),
        ("search", 4),
        ("one_frozen", 2),
        ("chunks", 9),
        ("host", 2),
        ("small_steps", 3),
        ("frozen", 4),
        ("decoding", 1),
        ("ssl", 1),
        ("compiled", 2),
    ],
)
def test_a_section_gives_a_number_for_each_of_its_cases(
    section: str, count: int, tmp_path: Path
) -> None:
    found = rows(tmp_path, section)
    assert [row["note"] for row in found if "ms" not in row and "rate" not in row] == []
    assert len(found) == count


def test_the_two_sides_of_a_case_are_adjacent(tmp_path: Path) -> None:
    found = rows(tmp_path, "search")
    assert [row["side"] for row in found] == ["vlkd", "torch.topk", "vlkd", "torch"]
    assert found[0]["case"] == found[1]["case"] != found[2]["case"] == found[3]["case"]
