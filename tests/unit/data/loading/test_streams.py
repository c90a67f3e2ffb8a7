"""A stream that another number of processes reads gives the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.data_sets import webdataset_stream
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import ImageInput


def numbers_of(texts: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[int(text.split()[-1])] for text in texts])}


VIEWS: Any = {"image": ImageView(ImageInput(size_px=(16, 16))), "text": TextView(numbers_of)}
GLOBAL_BATCH = 12


def batches(section: dict[str, Any], processes: int, start: int = 0) -> list[tuple[Any, Any, Any]]:
    """Images and numbers of the batches of all processes together, and what each could not read;
    the stream began on four."""
    of_rank = []
    for rank in range(processes):
        loader = Loader(
            open_reader(section),
            VIEWS,
            batch_size=GLOBAL_BATCH // processes,
            seed=3,
            rank=rank,
            world_size=processes,
            stream_parts=4,
            max_broken_share=1.0,
        )
        of_rank.append(list(loader.batches(1, start=start)))
    return [
        (
            torch.cat([batch.inputs["image"] for batch in step]),  # type: ignore[misc]
            torch.cat([batch.inputs["text"]["input_ids"] for batch in step]),  # type: ignore[call-overload]
            {one.name for batch in step for one in batch.skipped},
        )
        for step in zip(*of_rank, strict=True)
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_batches_do_not_depend_on_the_processes_that_read_the_parts(
    tmp_path: Path, processes: int
) -> None:
    section = webdataset_stream(tmp_path, shards=8, samples=8, broken={3, 10, 11, 12, 40})
    expected = batches(section, 4)
    assert len(expected) == 64 // GLOBAL_BATCH and any(skipped for *_, skipped in expected)
    found = [*batches(section, processes)[:2], *batches(section, processes, start=2)]
    for (images, numbers, skipped), (others, other_numbers, other_skipped) in zip(
        expected, found, strict=True
    ):
        # A broken sample is replaced by a readable one of its part, on any process.
        assert torch.equal(images, others) and torch.equal(numbers, other_numbers)
        assert skipped == other_skipped


def test_a_part_without_a_readable_sample_is_one_line(tmp_path: Path) -> None:
    section = webdataset_stream(tmp_path, shards=8, samples=8, broken=frozenset(range(64)))
    with pytest.raises(DataError, match=r"3 consecutive samples are broken, the first: .*\.tar:00"):
        batches(section, 6)
