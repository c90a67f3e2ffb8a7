"""Runs on data of which a part cannot be read."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.support.data_sets import encoded, photo, write_tar
from tests.unit.engine.recipes import differences, final_state, tiny_recipe, train
from vlkd_cli.errors import DataError, RecipeError


def shards(folder: Path, numbers: list[list[int]], broken: Collection[int] = ()) -> str:
    for shard, own in enumerate(numbers):
        members: dict[str, bytes] = {}
        for number in own:
            image = b"no image" if number in broken else encoded(photo(number))
            members[f"{number:04}.jpg"] = image
            members[f"{number:04}.txt"] = f"caption {number}".encode()
        write_tar(folder / f"{shard:05}.tar", members)
    return f"{folder}/{{00000..{len(numbers) - 1:05}}}.tar"


def recipe(path: str, **keys: Any) -> dict[str, Any]:
    data = {"reader": "webdataset", "path": path, "workers": 0, "max_broken_share": 0.5, **keys}
    sections = {"train": {"epochs": 2, "batch_size": 4}, "schedule": {"name": "constant"}}
    return {**tiny_recipe(**sections), "data": data}


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


def test_every_sample_of_a_shard_may_be_broken_and_each_is_named(tmp_path: Path) -> None:
    """A shard without any image that decodes, an empty image and an empty caption in another, and a
    shard of zeros."""
    path = shards(tmp_path, [list(range(5 * k, 5 * k + 5)) for k in range(4)], broken=range(5, 10))
    members = {f"00{number}.jpg": encoded(photo(number)) for number in range(10, 15)}
    members |= {f"00{number}.txt": b"a caption" for number in range(10, 15)}
    members |= {"0012.jpg": b"", "0013.txt": b""}
    write_tar(tmp_path / "00002.tar", dict(sorted(members.items())))
    (tmp_path / "00003.tar").write_bytes(bytes(100_000))
    run = train(tmp_path, recipe(path, max_broken_share=0.8))
    names = {line.partition(",")[0].removeprefix(f"{tmp_path}/") for line in skipped(run)}
    broken = {f"00001.tar:{number:04}" for number in range(5, 10)}
    assert names == {*broken, "00002.tar:0012", "00002.tar:0013", "00003.tar:0"}
    with pytest.raises(DataError, match=r"of \d+ samples are broken \(.*, allowed 30.0%\)"):
        train(tmp_path, recipe(path, max_broken_share=0.3), run="strict")


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


@pytest.mark.slow
def test_what_an_earlier_run_could_not_read_is_left_out_as_if_it_had_never_been_there(
    tmp_path: Path,
) -> None:
    """Images that only decoding finds to be broken, named by `data.exclude`."""
    numbers = [list(range(6 * k, 6 * k + 6)) for k in range(3)]
    path = shards(tmp_path / "damaged", numbers, broken={2, 8})
    first = train(tmp_path, recipe(path), run="first")
    assert {line.partition(",")[0].rpartition(":")[2] for line in skipped(first)} == {
        "0002",
        "0008",
    }
    good = [[number for number in own if number not in (2, 8)] for own in numbers]
    intact = train(tmp_path, recipe(shards(tmp_path / "intact", good)), run="intact")
    without = recipe(path, exclude=str(first))
    run = train(tmp_path, without, run="without")
    assert differences(*(final_state(each)["towers"] for each in (run, intact))) == []
    assert not (run / "skipped.csv").exists()
    # The list of the start is the run's, whatever becomes of the file.
    short = train(tmp_path, {**without, "train": {**without["train"], "steps": 3}}, run="short")
    (first / "skipped.csv").unlink()
    train(tmp_path, without, resume=str(short))
    assert differences(*(final_state(each)["towers"] for each in (short, run))) == []


def test_a_list_that_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    path = shards(tmp_path / "data", [list(range(8))])
    names = tmp_path / "names.txt"
    names.write_text("no such sample\n")
    with pytest.raises(DataError, match="names 1 samples, and the data has none of them"):
        train(tmp_path, recipe(path, exclude=str(names)))
    with pytest.raises(DataError, match=r"data.exclude .*none.txt: no such file"):
        train(tmp_path, recipe(path, exclude=str(tmp_path / "none.txt")), run="other")
    stream = recipe(path, exclude=str(names), stream=True, samples_per_epoch=8)
    with pytest.raises(RecipeError, match=r"data.exclude: has no effect: .* streams here"):
        train(tmp_path, stream, run="stream")


def skipped(run: Path) -> list[str]:
    return (run / "skipped.csv").read_text().splitlines()[1:]
