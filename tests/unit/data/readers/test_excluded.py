from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.data_sets import csv_data, parquet_data, webdataset_data
from vlkd_cli.data.readers.excluded import excluded_names, excluding
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.subset import Subset


def test_a_data_set_without_some_samples_is_that_of_the_others(tmp_path: Path) -> None:
    for make in (csv_data, webdataset_data, parquet_data):
        reader = open_reader(make(tmp_path / make.__name__))
        assert isinstance(reader, Reader)
        gone = [0, 3, 4]
        rest = [row for row in range(len(reader)) if row not in gone]
        found = excluding(reader, [reader.name(row) for row in gone])
        expected = Subset(reader, rest)
        assert len(found) == len(expected)
        for index in range(len(expected)):
            assert found.name(index) == expected.name(index)
            assert found.captions(index) == expected.captions(index)
            assert found.label(index) == expected.label(index)
        every = np.arange(len(expected) + 1)
        assert found.caption_starts(every).tolist() == expected.caption_starts(every).tolist()
        assert found.num_captions == expected.num_captions
        assert found.fingerprint() != reader.fingerprint()
        if reader.blocks is not None and found.blocks is not None:
            assert found.blocks.starts.tolist() == expected.blocks.starts.tolist()  # type: ignore[union-attr]


def test_names_come_from_lists_of_runs_and_from_plain_files(tmp_path: Path) -> None:
    (tmp_path / "skipped.csv").write_text('sample,reason\n"a,b.jpg",truncated\n')
    (tmp_path / "skipped_rank_1.csv").write_text("sample,reason\nc.jpg,missing\na,b\n")
    (tmp_path / "plain.txt").write_text("a,b.jpg\n\nd.jpg\n")
    assert excluded_names(str(tmp_path)) == ["a,b.jpg", "c.jpg", "a"]
    assert excluded_names(str(tmp_path / "plain.txt")) == ["a,b.jpg", "d.jpg"]
