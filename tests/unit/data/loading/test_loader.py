from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.data_sets import csv_data, write_photos, write_table
from tests.support.fakes import read_texts
from vlkd_cli import console
from vlkd_cli.data.batch import Batch, Skipped
from vlkd_cli.data.images.augment import SimCLRAugment, StandardAugment
from vlkd_cli.data.loading import workers as worker_pool
from vlkd_cli.data.loading.broken import BrokenCount
from vlkd_cli.data.loading.loader import Loader, in_order
from vlkd_cli.data.masks import BlockMask, RandomMask, ViewMask
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.data.views import FeatureView, ImageView, TextView
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import Grid, ImageInput, TextInput

SMALL = ImageInput(size_px=(24, 24))


def letters(texts: Sequence[str]) -> TextInput:
    """Character codes, padded with zeros."""
    longest = max(map(len, texts))
    return {
        "input_ids": torch.tensor(
            [[*map(ord, text), *[0] * (longest - len(text))] for text in texts]
        )
    }


def views() -> dict[str, Any]:
    return {
        "image": ImageView(SMALL, StandardAugment(scale=(0.3, 1.0), flip=0.5)),
        "text": TextView(letters),
    }


def equal(one: Batch, other: Batch) -> bool:
    same = (
        torch.equal(one.indices, other.indices)
        and torch.equal(one.labels, other.labels)
        and one.skipped == other.skipped
    )
    for key, value in one.inputs.items():
        theirs = other.inputs[key]
        pairs = (
            [(value, theirs)]
            if isinstance(value, torch.Tensor)
            else [(value[name], theirs[name]) for name in value]
        )
        same = same and all(torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]
    return same


def tsv(folder: Path, count: int, broken: Sequence[int] = ()) -> Any:
    names = write_photos(folder / "images", count)
    for number in broken:
        (folder / "images" / names[number]).write_bytes(b"\xff\xd8\xff no picture")
    write_table(folder / "data.tsv", [(f"images/{name}", f"caption of {name}") for name in names])
    return open_reader({"reader": "csv", "path": str(folder / "data.tsv")})


def test_workers_change_nothing_and_resuming_gives_the_same_batches() -> None:
    reader = Shapes(num_samples=60, size_px=32)
    alone = list(Loader(reader, views(), batch_size=8, seed=3).batches(1))
    loader = Loader(reader, views(), batch_size=8, seed=3, workers=2)
    try:
        together = list(loader.batches(1))
        resumed = list(loader.batches(1, start=3))
        again = list(loader.batches(0))
    finally:
        loader.close()
    assert len(alone) == 7
    assert all(map(equal, alone, together))
    assert len(resumed) == 4 and all(map(equal, alone[3:], resumed))
    assert not equal(again[0], alone[0])


def test_ranks_see_disjoint_rows_that_are_those_of_one_process() -> None:
    reader = Shapes(num_samples=50, size_px=16)
    shown = {"text": TextView(letters)}
    whole = [
        batch.indices.tolist() for batch in Loader(reader, shown, batch_size=12, seed=0).batches(2)
    ]
    for world_size in (2, 3, 4):
        ranks = [
            list(
                Loader(
                    reader,
                    shown,
                    batch_size=12 // world_size,
                    seed=0,
                    rank=rank,
                    world_size=world_size,
                ).batches(2)
            )
            for rank in range(world_size)
        ]
        together = [
            [row for own in ranks for row in own[step].indices.tolist()]
            for step in range(len(whole))
        ]
        assert together == whole
    assert len({row for step in whole for row in step}) == 48


def test_the_last_batch_is_equal_on_all_ranks_when_nothing_is_dropped() -> None:
    reader = Shapes(num_samples=21, size_px=16)
    ranks = [
        list(
            Loader(
                reader,
                {"text": TextView(letters)},
                batch_size=4,
                seed=0,
                drop_last=False,
                rank=rank,
                world_size=2,
            ).batches(0)
        )
        for rank in range(2)
    ]
    assert [len(batch) for batch in ranks[0]] == [len(batch) for batch in ranks[1]] == [4, 4, 3]
    assert {row for own in ranks for batch in own for row in batch.indices.tolist()} == set(
        range(21)
    )


def test_captions_vary_over_epochs_and_not_with_the_batch() -> None:
    reader = Shapes(num_samples=8, size_px=16)
    loader = Loader(reader, {"text": TextView(letters)}, batch_size=8, seed=0)
    chosen = set()
    for epoch in range(12):
        (batch,) = loader.batches(epoch)
        (row,) = (batch.indices == 3).nonzero()[0].tolist()
        text = batch.inputs["text"]
        assert isinstance(text, dict)
        chosen.add("".join(chr(code) for code in text["input_ids"][row].tolist() if code))
    assert chosen <= set(reader.captions(3)) and len(chosen) >= 4


def test_a_broken_image_is_replaced_the_same_way_everywhere_and_named(tmp_path: Path) -> None:
    reader = tsv(tmp_path, 40, broken=[7])
    alone = list(Loader(reader, views(), batch_size=8, seed=1).batches(0))
    loader = Loader(reader, views(), batch_size=8, seed=1, workers=2)
    together = list(loader.batches(0))
    loader.close()
    assert all(map(equal, alone, together))
    skipped = [skipped for batch in alone for skipped in batch.skipped]
    assert [Path(name).name for name, _ in skipped] == ["photo07.jpg"]
    assert skipped[0].reason
    assert all(7 not in batch.indices.tolist() for batch in alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_stop_with_count_share_and_first_file(
    tmp_path: Path, workers: int
) -> None:
    reader = tsv(tmp_path, 40, broken=range(3, 23))
    loader = Loader(reader, {"image": ImageView(SMALL)}, batch_size=8, seed=1, workers=workers)
    with pytest.raises(
        DataError,
        match=(
            r"^\d+ of \d+ samples are broken \(.*allowed 1.0%\); the first: .*photo\d\d.jpg: .*"
            r" data.max_broken_share"
        ),
    ):
        list(loader.batches(0))
    loader.close()


def test_when_nothing_can_be_read_the_line_names_a_file(tmp_path: Path) -> None:
    reader = tsv(tmp_path, 8, broken=range(8))
    loader = Loader(reader, {"image": ImageView(SMALL)}, batch_size=4, seed=1, workers=1)
    with pytest.raises(
        DataError, match=r"consecutive samples are broken, the first: .*photo\d\d.jpg"
    ) as caught:
        list(loader.batches(0))
    assert "\n" not in str(caught.value)
    loader.close()


def test_a_bug_in_a_view_raises_with_its_traceback() -> None:
    def bug(texts: Sequence[str]) -> TextInput:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(
            Loader(Shapes(num_samples=8), {"text": TextView(bug)}, batch_size=4, seed=0).batches(0)
        )


def test_the_error_for_too_little_data_names_what_to_lower() -> None:
    with pytest.raises(
        DataError,
        match=r"an epoch has 10 samples, fewer than the 16 of one step \(2 x batch size 8\). Lower",
    ):
        Loader(Shapes(num_samples=10), {}, batch_size=8, seed=0, rank=0, world_size=2)


def test_in_order_gives_every_index_once_and_a_short_last_batch() -> None:
    reader = Shapes(num_samples=10, size_px=16)
    for workers in (0, 2):
        batches = list(
            in_order(
                reader, {"image": ImageView(SMALL)}, [4, 2, 9, 0, 7], batch_size=2, workers=workers
            )
        )
        assert [batch.indices.tolist() for batch in batches] == [[4, 2], [9, 0], [7]]


def test_in_order_names_a_broken_image_or_leaves_it_out(tmp_path: Path) -> None:
    reader = tsv(tmp_path, 6, broken=[4])
    shown = {"image": ImageView(SMALL), "text": TextView(letters)}
    with pytest.raises(DataError, match=r"photo04.jpg: .*Repair the file"):
        list(in_order(reader, shown, range(6), batch_size=4, workers=1))
    batches = list(in_order(reader, shown, range(6), batch_size=4, skip=True))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [5]]
    assert [Path(skipped.name).name for skipped in batches[1].skipped] == ["photo04.jpg"]
    assert batches[1].inputs["image"].shape == (1, 3, 24, 24)  # type: ignore[union-attr]


def test_towers_of_one_view_share_their_region_and_other_views_do_not() -> None:
    augment = SimCLRAugment(scale=(0.2, 0.4))
    shown = {
        "a": ImageView(SMALL, augment),
        "b": ImageView(SMALL, augment),
        "a@second": ImageView(SMALL, augment),
    }
    (batch,) = Loader(Shapes(num_samples=4), shown, batch_size=4, seed=0).batches(0)
    assert torch.equal(batch.inputs["a"], batch.inputs["b"])  # type: ignore[arg-type]
    assert not torch.equal(batch.inputs["a"], batch.inputs["a@second"])  # type: ignore[arg-type]


def test_stored_features_are_the_rows_of_the_sampled_images_and_captions(tmp_path: Path) -> None:
    reader = open_reader(csv_data(tmp_path))
    np.save(tmp_path / "images.npy", np.arange(len(reader), dtype=np.float32)[:, None] * [1, 10])  # type: ignore[arg-type]
    np.save(tmp_path / "captions.npy", np.arange(reader.num_captions, dtype=np.float32)[:, None])  # type: ignore[union-attr]
    stored = {
        "image": FeatureView(tmp_path / "images.npy", "sample"),
        "caption": FeatureView(tmp_path / "captions.npy", "text"),
    }
    fast = Loader(reader, stored, batch_size=3, seed=5)
    slow = Loader(reader, stored | {"text": TextView(letters)}, batch_size=3, seed=5)
    for epoch in range(4):
        for one, other in zip(fast.batches(epoch), slow.batches(epoch), strict=True):
            for key in stored:
                assert torch.equal(one.inputs[key], other.inputs[key])  # type: ignore[arg-type]
            assert one.inputs["image"][:, 1].tolist() == (10 * one.indices).tolist()  # type: ignore[index]
            text = other.inputs["text"]
            assert isinstance(text, dict)
            for row, index, codes in zip(
                one.inputs["caption"], one.indices, text["input_ids"], strict=True
            ):  # type: ignore[arg-type]
                start = reader.caption_start(int(index))  # type: ignore[union-attr]
                caption = "".join(chr(code) for code in codes.tolist() if code)
                assert reader.captions(int(index))[int(row) - start] == caption  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_are_those_of_sample_view_and_picture_whatever_the_towers_and_workers(
    workers: int,
) -> None:
    strong = StandardAugment(scale=(0.3, 1.0))
    grid = Grid(4, 4, 6)
    masks = {"main": ViewMask(RandomMask(grid), 2), "local": ViewMask(BlockMask(grid, hidden=5), 1)}

    def loaded(workers: int, *towers: str) -> list[Batch]:
        views: dict[str, Any] = {tower: ImageView(SMALL, strong, copies=2) for tower in towers}
        views |= {f"{tower}@local": ImageView(SMALL, strong) for tower in towers}
        reader = Shapes(num_samples=24, size_px=32)
        loader = Loader(reader, views, batch_size=8, seed=3, workers=workers, masks=masks)
        batches = list(loader.batches(1))
        loader.close()
        return batches

    alone, together = loaded(0, "image"), loaded(workers, "image", "teacher")
    for one, other in zip(alone, together, strict=True):
        assert one.hidden["main"].shape == (8, 2, 16) and one.hidden["local"].shape == (8, 16)
        for name in masks:
            assert one.hidden[name].equal(other.hidden[name])
        assert other.inputs["image"].equal(other.inputs["teacher"])  # type: ignore[union-attr, arg-type]
        assert one.inputs["image"].shape == (8, 2, 3, 24, 24)  # type: ignore[union-attr]
    hidden = torch.cat([batch.hidden["main"] for batch in alone])
    assert hidden.sum(2).eq(12).all()
    assert not hidden[:, 0].equal(hidden[:, 1]) and not hidden[0].equal(hidden[1])


def test_named_texts_are_sampled_with_the_captions_choice_and_empty_ones_are_replaced(
    tmp_path: Path,
) -> None:
    table = tmp_path / "pairs.csv"
    rows = [f"question {row},{'' if row == 3 else f'first {row}'},second {row}" for row in range(8)]
    table.write_text("\n".join(["question,a,b", *rows]) + "\n")
    texts = {"answer": ["a"], "other": ["a", "b"]}
    data = {
        "reader": "csv",
        "path": str(table),
        "image": None,
        "caption": "question",
        "texts": texts,
    }
    reader = open_reader(data)
    shown = {"text": TextView(letters), "text@answer": TextView(letters, "answer")}
    seen = []
    for epoch in range(3):
        loader = Loader(reader, shown, batch_size=4, seed=0, max_broken_share=1.0)
        for batch in loader.batches(epoch):
            questions, answers = (read_texts(batch.inputs[key]) for key in shown)  # type: ignore[arg-type]
            for question, answer in zip(questions, answers, strict=True):
                assert question.removeprefix("question ") == answer.removeprefix("first ")
            seen += answers
            assert all(skipped.reason == "has no text 'answer'" for skipped in batch.skipped)
    assert "first 3" not in seen and len(set(seen)) == 7


def test_starting_another_iteration_ends_the_former() -> None:
    loader = Loader(
        Shapes(num_samples=16, size_px=16), {"text": TextView(letters)}, batch_size=4, seed=0
    )
    first = loader.batches(0)
    next(first)
    next(loader.batches(0))
    with pytest.raises(RuntimeError, match="only the newest"):
        next(first)


class Killer:
    """A view that ends its process as the kernel does when memory runs out."""

    needs = frozenset({"text"})

    def __call__(self, samples: Sequence[Any]) -> TextInput:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def test_a_worker_that_dies_ends_in_one_line() -> None:
    loader = Loader(
        Shapes(num_samples=8, size_px=16), {"text": Killer()}, batch_size=4, seed=0, workers=1
    )
    with pytest.raises(
        DataError,
        match=(r"a loader worker was killed \(Killed\), most often because memory ran out. Lower"),
    ) as caught:
        list(loader.batches(0))
    assert "\n" not in str(caught.value)


class Slow:
    """Prepares a batch in a quarter of a second."""

    needs: frozenset[str] = frozenset()

    def __call__(self, samples: Sequence[Any]) -> torch.Tensor:
        time.sleep(0.25)
        return torch.tensor([os.getpid()] * len(samples))


def test_a_worker_that_is_killed_raises_nothing_until_its_batch_is_due() -> None:
    loader = Loader(
        Shapes(num_samples=80, size_px=16), {"pid": Slow()}, batch_size=4, seed=0, workers=1
    )
    batches = loader.batches(0)
    pid = int(next(batches).inputs["pid"][0])
    os.kill(pid, signal.SIGKILL)
    ends = time.monotonic() + 2
    while time.monotonic() < ends:  # a forward pass, in which torch's own handler would raise
        sum(range(1000))
    with pytest.raises(DataError, match=r"a loader worker was killed \(Killed\)") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("room", [0, 10_000])
def test_batches_that_shared_memory_cannot_hold_are_copied(
    room: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.warn_once.cache_clear()
    shown = {"image": ImageView(ImageInput((80, 80)), StandardAugment()), "text": TextView(letters)}

    def batches(count: int) -> list[Batch]:
        loader = Loader(
            Shapes(num_samples=16, size_px=80), shown, batch_size=8, seed=0, workers=count
        )
        made = list(loader.batches(0))
        loader.close()
        return made

    alone = batches(0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(worker_pool, "_shared_memory_room", lambda: room)
    assert all(equal(one, other) for one, other in zip(alone, batches(2), strict=True))
    reported = capsys.readouterr().err
    assert reported.count("\n") == 1 and "/dev/shm has only 0 MiB of room" in reported
    monkeypatch.setattr(worker_pool, "_shared_memory_room", lambda: 1 << 30)
    assert all(equal(one, other) for one, other in zip(alone, batches(2), strict=True))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stored", [True, False])
def test_rows_known_to_be_broken_are_replaced_and_reported(tmp_path: Path, stored: bool) -> None:
    reader = open_reader({"reader": "shapes", "num_samples": 12, "size_px": 16})
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32)[:, None])
    views = (
        {"image": FeatureView(tmp_path / "rows.npy", "sample")}
        if stored
        else {"image": ImageView(ImageInput((16, 16)))}
    )
    known = {3: Skipped("three.jpg", "truncated"), 7: Skipped("seven.jpg", "missing")}
    loader = Loader(reader, views, batch_size=4, seed=0, max_broken_share=1.0, broken=known)
    batches = list(loader.batches(0))
    rows = torch.cat([batch.indices for batch in batches]).tolist()
    assert len(rows) == 12 and not {3, 7} & set(rows)
    names = {skipped.name for batch in batches for skipped in batch.skipped}
    assert names == ({"three.jpg", "seven.jpg"} if stored else {reader.name(3), reader.name(7)})
    if stored:
        assert torch.cat([batch.inputs["image"] for batch in batches]).squeeze(1).tolist() == rows


def test_broken_samples_are_counted_once_however_often_they_are_sampled(tmp_path: Path) -> None:
    reader = tsv(tmp_path, 30, broken=range(6))
    loader = Loader(
        reader, {"image": ImageView(SMALL)}, batch_size=10, seed=1, max_broken_share=0.19
    )
    with pytest.raises(DataError, match=r"^6 of 30 samples are broken \(20.0%, allowed 19.0%\)"):
        for epoch in range(50):
            list(loader.batches(epoch))
    allowed = Loader(
        reader, {"image": ImageView(SMALL)}, batch_size=10, seed=1, max_broken_share=0.5
    )
    for epoch in range(5):
        list(allowed.batches(epoch))
    assert len(allowed.broken) == 6


def test_a_stream_counts_no_more_samples_than_an_epoch_has() -> None:
    count = BrokenCount(0.1, 20, is_stream=True)
    rows = torch.full((10,), -1)
    for _ in range(8):
        count.take(Batch({}, rows, rows))
    broken = [Skipped(f"{number}.jpg", "gone") for number in range(5)]
    with pytest.raises(DataError, match="5 of 25 samples are broken"):
        count.take(Batch({}, rows, rows, broken))


def test_as_many_broken_samples_as_are_allowed_do_not_stop_a_run() -> None:
    count = BrokenCount(0.29, 100)
    broken = [Skipped(f"{number}.jpg", "gone") for number in range(29)]
    good = torch.arange(71)
    count.take(Batch({}, good, good, broken))
    with pytest.raises(DataError, match=r"30 of 101 samples are broken \(29\.7%, allowed 29\.0%"):
        count.take(Batch({}, good, good, [Skipped("one.jpg", "gone")]))


@pytest.mark.parametrize("stored", [True, False])
def test_a_sample_without_a_finite_target_is_broken(tmp_path: Path, stored: bool) -> None:
    write_photos(tmp_path, 6)
    cells = ["0.5", "1", "", "nan", "2", "3"]
    rows = [f"photo0{k}.jpg,a,{cell}" for k, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join(["filepath,title,score", *rows]))
    reader = open_reader({"reader": "csv", "path": str(tmp_path / "t.csv"), "target": "score"})
    np.save(tmp_path / "rows.npy", np.arange(6, dtype=np.float32)[:, None])
    view = FeatureView(tmp_path / "rows.npy", "sample") if stored else ImageView(SMALL)
    loader = Loader(reader, {"image": view}, batch_size=3, seed=0, max_broken_share=1)
    batches = list(loader.batches(0))
    assert all(
        torch.isfinite(batch.targets).all() for batch in batches if batch.targets is not None
    )
    assert {Path(name).name for name in loader.broken} == {"photo02.jpg", "photo03.jpg"}
    assert {each.reason for each in loader.broken.values()} == {"its target is not a finite number"}
    assert batches[0].targets is not None and batches[0].targets.shape == (3, 1)
