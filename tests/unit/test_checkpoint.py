from __future__ import annotations

import builtins
import errno
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vlkd_cli.checkpoint import Checkpoint, Source, resolve
from vlkd_cli.errors import CheckpointError

RECIPE = '{"towers": {"image": {"builder": "openclip"}}, "train": {"batch_size": 8}}'


def checkpoint(step: int, **fields: Any) -> Checkpoint:
    towers = {"image": {"weight": torch.full((3,), float(step))}}
    plain = {"step": step, "recipe": RECIPE, "world_size": 2, "global_batch": 16, "towers": towers}
    return Checkpoint(**{**plain, **fields})


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def test_last_best_and_the_newest_steps_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint(step).save(tmp_path, is_best=step == 2, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt",
        "last.pt",
        "step_00000002.pt",
        "step_00000003.pt",
    ]
    assert Checkpoint.load(tmp_path / "last.pt").step == 3
    assert Checkpoint.load(tmp_path / "best.pt").step == 2


def test_best_survives_when_its_step_file_is_dropped(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint(step).save(tmp_path, is_best=step == 1)
    assert Checkpoint.load(tmp_path / "best.pt").step == 1


def test_every_field_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = checkpoint(
        7,
        followers={"teacher.weight": torch.ones(2)},
        distillers={"infonce.log_scale": torch.tensor(2.0)},
        ema={"towers.image.weight": torch.zeros(3)},
        optimizer={"image.weight": {"step": torch.tensor(7.0), "exp_avg": torch.ones(3)}},
        scaler={"scale": 8.0},
        files={"tokenizers/text.json": b'{"\xc3\xbc": 1}\x00\xff'},
        evaluated=False,
        best=0.25,
        skipped_steps=3,
    )
    read = Checkpoint.load(written.save(tmp_path))
    for name in ("followers", "distillers", "ema"):
        for key, value in getattr(written, name).items():
            assert getattr(read, name)[key].equal(value)
    assert read.optimizer["image.weight"]["exp_avg"].equal(torch.ones(3))
    for name in ("step", "recipe", "global_batch", "scaler", "files", "evaluated", "best"):
        assert getattr(read, name) == getattr(written, name)
    assert (read.skipped_steps, read.format, read.world_size) == (3, 2, 2)


# -- writing ---------------------------------------------------------------------------------------


class FullDisk(io.RawIOBase):
    """A file on a disk that takes 100 bytes."""

    def __init__(self, file: Any) -> None:
        self._file, self._room = file, 100

    def write(self, data: Any) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def close(self) -> None:
        self._file.close()
        super().close()


def test_a_full_disk_is_one_line_and_leaves_the_former_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(1).save(tmp_path)
    real = Path.open

    def opened(self: Path, mode: str = "r", *arguments: Any, **keys: Any) -> Any:
        file = real(self, mode, *arguments, **keys)
        return FullDisk(file) if "w" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(CheckpointError) as caught:
            checkpoint(2).save(tmp_path)
    assert str(caught.value) == (
        f"could not save step_00000002.pt in {tmp_path}: No space left on device. Earlier"
        " checkpoints there are whole; free space, then continue with --resume."
    )
    assert Checkpoint.load(tmp_path / "last.pt").step == 1
    assert not list(tmp_path.glob("*.partial"))


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.errors import CheckpointError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
weight = torch.zeros(100_000)
try:
    Checkpoint(
        step=2, recipe="{}", world_size=1, global_batch=1, towers={"image": {"weight": weight}}
    ).save(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [200_000, 400_300])
def test_the_reason_is_the_systems_and_not_a_position_of_torchs_writer(
    tmp_path: Path, limit: int
) -> None:
    checkpoint(1).save(tmp_path)
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.startswith(f"could not save step_00000002.pt in {tmp_path}: File too large. Ear")
    assert Checkpoint.load(resolve(tmp_path)).step == 1


def test_a_kill_while_saving_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(1).save(tmp_path)

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint(2).save(tmp_path)
    assert Checkpoint.load(resolve(tmp_path)).step == 1
    checkpoint(3).save(tmp_path)
    assert not list(tmp_path.glob("*.partial"))


# -- reading ---------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_names_the_others(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint(step).save(tmp_path, keep=2)
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").write_bytes((tmp_path / "step_00000002.pt").read_bytes()[:200])
    with pytest.raises(
        CheckpointError,
        match=r"last.pt is damaged .* Others there: step_00000001.pt, step_00000002.pt",
    ):
        Checkpoint.load(tmp_path / "last.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 2, "towers": {}, "evil": builtins.print}, path)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        Checkpoint.load(path)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of vlkd"):
        Checkpoint.load(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Checkpoint.load(tmp_path / "missing.pt")


def test_a_format_of_the_future_is_named(tmp_path: Path) -> None:
    path = checkpoint(1).save(tmp_path)
    torch.save({**content_of(path), "format": 9}, path)
    with pytest.raises(
        CheckpointError, match=r"is a checkpoint of format 9; .* reads formats 1 and 2"
    ):
        Checkpoint.load(path)


def test_one_flipped_byte_in_a_weight_is_noticed(tmp_path: Path) -> None:
    path = checkpoint(1, towers={"image": {"weight": torch.zeros(10_000)}}).save(tmp_path)
    assert Checkpoint.load(path).towers["image"]["weight"].sum() == 0
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="step_00000001.pt is damaged .*checksum"):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("step", "seven", "step"),
        ("step", None, "step"),
        ("step", -1, "step"),
        ("recipe", {"towers": {}}, "recipe"),
        ("world_size", 0, "world_size"),
        ("global_batch", 2.5, "global_batch"),
        ("towers", [1, 2], "towers"),
        ("towers", {"image": {"weight": [1.0]}}, r"towers\.image\.weight"),
        ("followers", {"a": 1}, r"followers\.a"),
        ("ema", {3: torch.ones(1)}, r"ema\.3"),
        ("optimizer", {"image.weight": 1}, r"optimizer\.image\.weight"),
        ("evaluated", "yes", "evaluated"),
        ("best", "high", "best"),
        ("files", {"a": "text"}, r"files\.a"),
        ("surprise", 1, "surprise"),
    ],
)
def test_a_field_of_another_type_is_one_line(
    tmp_path: Path, field: str, value: Any, place: str
) -> None:
    path = checkpoint(1).save(tmp_path)
    torch.save({**content_of(path), field: value}, path)
    with pytest.raises(CheckpointError, match=rf"step_00000001.pt is damaged: {place}") as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["step", "recipe", "world_size", "global_batch"])
@pytest.mark.parametrize("former", [False, True])
def test_a_missing_field_is_one_line(tmp_path: Path, field: str, former: bool) -> None:
    path = checkpoint(1).save(tmp_path)
    content = content_of(path)
    if former:
        content = {**content, "format": 1, "optimizer": {"state": {}, "param_groups": []}}
        del content["version"], content["files"], content["global_batch"]
        if field == "global_batch":
            del content["optimizer"]
    content.pop(field, None)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"is damaged: .*(missing|required)") as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_recipe_inside_is_one_line(tmp_path: Path) -> None:
    read = Checkpoint.load(checkpoint(1, recipe="{").save(tmp_path))
    with pytest.raises(CheckpointError, match="its recipe is damaged") as caught:
        read.read_recipe()
    assert "\n" not in str(caught.value)
    assert Checkpoint.load(checkpoint(1).save(tmp_path)).read_recipe().train.batch_size == 8


# -- the checkpoint that a run means ---------------------------------------------------------------


def test_a_run_means_its_best_checkpoint_where_there_is_one_else_its_last(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint(1).save(folder)
    assert resolve(tmp_path) == resolve(folder) == folder / "last.pt"
    checkpoint(2).save(folder, is_best=True)
    checkpoint(3).save(folder)
    assert resolve(tmp_path) == resolve(str(folder)) == folder / "best.pt"
    assert resolve(tmp_path, "last") == folder / "last.pt"
    assert resolve(folder / "step_00000003.pt") == folder / "step_00000003.pt"


def test_a_run_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run or checkpoint at .*missing"):
        resolve(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"\(checkpoints/last.pt\)\. Was it stopped before"):
        resolve(tmp_path)
    path = checkpoint(1).save(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"\(checkpoints/best.pt\).* names no `train.best`"):
        resolve(tmp_path, "best")
    with pytest.raises(CheckpointError, match="`checkpoint: best` has nothing to choose"):
        resolve(path, "best")


def test_towers_come_with_their_average_and_followers_as_they_are(tmp_path: Path) -> None:
    read = checkpoint(
        1,
        towers={"image": {"weight": torch.zeros(2), "running_mean": torch.ones(2)}},
        ema={"towers.image.weight": torch.full((2,), 0.5), "towers.image_b.weight": torch.ones(2)},
        followers={"teacher.weight": torch.full((2,), 3.0), "teacher_b.weight": torch.ones(2)},
    )
    averaged, live = read.tower("image"), read.tower("image", averaged=False)
    assert averaged["weight"].tolist() == [0.5, 0.5] and live["weight"].tolist() == [0, 0]
    assert averaged["running_mean"].tolist() == [1, 1]
    assert {name: value.tolist() for name, value in read.tower("teacher").items()} == {
        "weight": [3, 3]
    }


def test_a_tower_that_is_not_in_the_checkpoint_is_named() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"holds no trained tower 'imag'\. Did you mean 'image'\? It holds: image, teacher\.",
    ):
        checkpoint(1, followers={"teacher.weight": torch.ones(1)}).tower("imag")


@pytest.mark.parametrize("ema", [{}, {"towers.image.weight": torch.ones(3)}])
def test_the_source_names_run_file_step_and_average(tmp_path: Path, ema: Any) -> None:
    checkpoint(12, ema=ema).save(tmp_path / "my-run" / "checkpoints")
    path = tmp_path / "my-run" / "checkpoints" / "last.pt"
    source = Checkpoint.load(path).source
    assert source == Source("my-run", str(path), 12, bool(ema))
    assert str(source) == f"{path}, step 12{', averaged weights' if ema else ''}"
