"""Runs on data of which a part cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.data_sets import encoded, photo, write_tar
from tests.unit.engine.recipes import differences, final_state, tiny_recipe, train
from vlkd_cli.errors import DataError


def shards(folder: Path, numbers: list[list[int]]) -> str:
    for shard, own in enumerate(numbers):
        members: dict[str, bytes] = {}
        for number in own:
            members[f"{number:04}.jpg"] = encoded(photo(number))
            members[f"{number:04}.txt"] = f"caption {number}".encode()
        write_tar(folder / f"{shard:05}.tar", members)
    return f"{folder}/{{00000..{len(numbers) - 1:05}}}.tar"


def recipe(path: str, **keys: Any) -> dict[str, Any]:
    data = {"reader": "webdataset", "path": path, "workers": 0, "max_broken_share": 0.5, **keys}
    return {**tiny_recipe(train={"epochs": 2, "batch_size": 4}), "data": data}


def damaged(folder: Path) -> str:
    """Four shards of five samples: the first is missing, the header of the eighth is damaged."""
    path = shards(folder, [list(range(5 * k, 5 * k + 5)) for k in range(4)])
    os.unlink(folder / "00000.tar")
    shard = folder / "00001.tar"
    content = shard.read_bytes()
    place = content.index(b"0007.jpg")
    shard.write_bytes(content[:place] + b"\xff" * 200 + content[place + 200 :])
    return path


def test_a_run_ends_as_if_the_damaged_samples_had_never_been_there(tmp_path: Path) -> None:
    path = damaged(tmp_path / "damaged")
    good = [[5, 6, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
    run = train(tmp_path, recipe(path))
    intact = train(tmp_path, recipe(shards(tmp_path / "intact", good)), run="intact")
    assert differences(*(final_state(each)["towers"] for each in (run, intact))) == []
    lines = (run / "skipped.csv").read_text().splitlines()
    folder = tmp_path / "damaged"
    assert lines[1] == (
        f'{folder}/00000.tar,"no such file, or it cannot be opened; about 5 samples"'
    )
    assert lines[2].startswith(f"{folder}/00001.tar:") and "no member begins" in lines[2]
    assert len(lines) == 3


def test_more_loss_than_max_broken_share_ends_the_run_before_its_first_step(
    tmp_path: Path,
) -> None:
    expected = r"about 6 of 20 samples are lost \(30.0%, allowed 10.0%\); the first: .*00000.tar"
    with pytest.raises(DataError, match=expected):
        train(tmp_path, recipe(damaged(tmp_path / "data"), max_broken_share=0.1))


def test_a_stream_with_a_gap_in_its_shard_numbers_runs_to_its_end(tmp_path: Path) -> None:
    path = damaged(tmp_path / "data")
    run = train(tmp_path, recipe(path, stream=True, samples_per_epoch=20, shuffle_buffer=8))
    assert final_state(run)["step"] == 10
    lines = (run / "skipped.csv").read_text().splitlines()[1:]
    assert {line.partition(",")[0].rpartition("/")[2] for line in lines} == {
        "00000.tar",
        "00001.tar",
    }
    expected = r"samples are broken \(.*, allowed 5.0%\); the first: .*0000[01].tar"
    with pytest.raises(DataError, match=expected):
        section = recipe(path, stream=True, samples_per_epoch=20, max_broken_share=0.05)
        train(tmp_path, section, run="strict")
