"""The benchmark's own code, with small sizes, wherever the tests run."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.slow
def test_recipes_of_self_supervision_are_adjacent_to_lightlys_step(tmp_path: Path) -> None:
    if importlib.util.find_spec("lightly") is None:
        pytest.skip("lightly is not installed, which the benchmark alone compares with")
    found = rows(tmp_path, "ssl")
    assert [row["note"] for row in found if "ms" not in row] == []
    names = "barlow_twins byol densecl dino ibot mae mocov2 simclr simsiam swav vicreg"
    lightly = [row["case"] for row in found if row["side"] == "lightly"]
    assert lightly == [f"ssl/{name}, 4 images" for name in names.split()]
    [own] = [position for position, row in enumerate(found) if row["side"] == "vlkd"]
    assert found[own + 1]["case"] == found[own]["case"]


@pytest.mark.slow
def test_recipes_of_self_supervision_are_timed_without_lightly(tmp_path: Path) -> None:
    if importlib.util.find_spec("lightly") is not None:
        pytest.skip("lightly is installed")
    missing, own = rows(tmp_path, "ssl")
    assert "--lightly" in str(missing["note"]) and missing["side"] == "lightly"
    assert own["case"] == "ssl/simclr, 4 images" and "ms" in own
