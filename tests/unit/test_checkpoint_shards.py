from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.checkpoint_shards import separated, step_files, step_of
from vlkd_cli.distributed.sharding import joined
from vlkd_cli.errors import CheckpointError

WEIGHT, VECTOR = torch.arange(10.0).view(5, 2), torch.tensor([7.0])


def checkpoint(step: int, **fields: Any) -> Checkpoint:
    return Checkpoint(
        step=step, recipe="{}", world_size=4, global_batch=8, towers={"image": {}}, **fields
    )


def divided(folder: Path, step: int = 3) -> Path:
    """A checkpoint of four processes: five rows, of which the last one holds none, and one row."""
    path = checkpoint(step, optimizer={"image.w": {"step": torch.tensor(4.0)}}).save(folder)
    content = torch.load(path, weights_only=True)
    content["shards"] = []
    for rank in range(4):
        name = f"{path.stem}.shard-{rank + 1}-of-4.pt"
        rows, one = WEIGHT[2 * rank : 2 * rank + 2], VECTOR[rank : rank + 1]
        slices = {
            "towers": {"image": {"w": rows, "b": one}},
            "optimizer": {"image.w": {"exp_avg": rows + 1}},
        }
        torch.save({"step": step, "slices": slices}, folder / name)
        content["shards"].append(name)
    torch.save(content, path)
    for name in ("last.pt", "best.pt"):
        (folder / name).unlink(missing_ok=True)
        torch.save(content, folder / name)
    return path


def test_slices_are_joined_in_order_when_a_tensor_is_needed(tmp_path: Path) -> None:
    found = Checkpoint.load(divided(tmp_path))
    assert found.towers["image"]["w"].is_meta and found.towers["image"]["w"].shape == (5, 2)
    assert found.tower("image")["w"].equal(WEIGHT) and found.tower("image")["b"].equal(VECTOR)
    state = found.optimizer["image.w"]
    assert joined(state["exp_avg"]).equal(WEIGHT + 1) and float(state["step"]) == 4
    # Written again, it holds the tensors.
    again = Checkpoint.load(found.save(tmp_path / "other"))
    assert again.shards == [] and again.towers["image"]["w"].equal(WEIGHT)


def test_a_whole_checkpoint_names_no_shards(tmp_path: Path) -> None:
    path = checkpoint(1).save(tmp_path)
    assert "shards" not in torch.load(path, weights_only=True)
    assert Checkpoint.load(path).shards == []


def test_a_missing_or_foreign_shard_is_one_line(tmp_path: Path) -> None:
    path = divided(tmp_path)
    shard = tmp_path / "step_00000003.shard-2-of-4.pt"
    content = torch.load(shard, weights_only=True)
    torch.save({**content, "step": 2}, shard)
    with pytest.raises(CheckpointError, match="shard-2-of-4.pt is of another checkpoint than"):
        Checkpoint.load(path)
    shard.write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="shard-2-of-4.pt is damaged"):
        Checkpoint.load(path)
    shard.unlink()
    with pytest.raises(CheckpointError, match="needs step_00000003.shard-2-of-4.pt next to it"):
        Checkpoint.load(path)


def test_shards_go_with_the_last_checkpoint_that_names_them(tmp_path: Path) -> None:
    divided(tmp_path)
    checkpoint(4).save(tmp_path)
    # step_3 is gone, and best.pt still names its shards.
    assert [path.name for path in step_files(tmp_path)] == ["step_00000004.pt"]
    assert len(list(tmp_path.glob("*.shard-*"))) == 4
    assert Checkpoint.load(tmp_path / "best.pt").tower("image")["w"].equal(WEIGHT)
    before = tmp_path / "before_cooldown.pt"
    before.write_bytes(b"damaged")
    checkpoint(5).save(tmp_path, is_best=True)
    assert len(list(tmp_path.glob("*.shard-*"))) == 4
    before.unlink()
    checkpoint(6).save(tmp_path)
    assert not list(tmp_path.glob("*.shard-*"))


def test_names_tell_steps_and_shards_apart() -> None:
    names = ("step_00000012.pt", "step_00000012.shard-1-of-2.pt", "last.pt", "step_x.pt")
    assert [step_of(Path(name)) for name in names] == [12, 12, -1, -1]


def test_what_is_not_divided_stays_in_the_checkpoint() -> None:
    content: dict[str, dict[str, Tensor]] = {"towers": {"a": WEIGHT}, "ema": {}}
    whole, slices = separated(content)
    assert whole == content and slices == {}
