from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_sets import write_tar
from vlkd_cli.data.files import shard_index
from vlkd_cli.data.files.shard_index import index_shard, index_shards
from vlkd_cli.data.files.shard_samples import ShardSamples
from vlkd_cli.data.files.tar_members import Parts
from vlkd_cli.errors import DataError

PARTS = Parts(("jpg",), ("txt",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def shards(folder: Path, counts: list[int]) -> list[str]:
    paths, number = [], 0
    for shard, count in enumerate(counts):
        members = {}
        for _ in range(count):
            members |= {f"{number:03}.jpg": b"i%d" % number, f"{number:03}.txt": b"t%d" % number}
            number += 1
        paths.append(str(write_tar(folder / f"{shard}.tar", members)))
    return paths


def texts(samples: ShardSamples) -> list[str]:
    return [samples.texts(index)["txt"].decode() for index in range(len(samples))]


def damage(path: str, what: bytes, junk: bytes = b"\xff" * 300) -> None:
    content = bytearray(Path(path).read_bytes())
    place = content.index(what)
    content[place : place + len(junk)] = junk
    Path(path).write_bytes(bytes(content))


def test_an_image_and_a_text_take_sixteen_bytes_a_sample(tmp_path: Path) -> None:
    paths = shards(tmp_path, [3, 40])
    arrays = index_shards(paths, PARTS).arrays
    assert arrays["members"].nbytes == 16 * 43
    assert not {"labels", "captions_before"} & {*arrays.sums()}
    samples = ShardSamples(paths, PARTS)
    assert texts(samples) == [f"t{number}" for number in range(43)]
    assert samples.read(42, "image") == b"i42" and samples.name(3) == f"{paths[1]}:003"
    assert samples.captions_before(np.array([0, 43])).tolist() == [0, 43]


@pytest.mark.parametrize("what", [b"004.jpg", b"004.txt"])
def test_a_damaged_header_costs_its_sample_alone(tmp_path: Path, what: bytes) -> None:
    paths = shards(tmp_path, [5, 5])
    whole = index_shards(shards(tmp_path / "without", [4, 5]), PARTS).arrays["members"].shape
    damage(paths[0], what)
    samples = ShardSamples(paths, PARTS)
    assert samples.arrays["members"].shape == whole
    assert texts(samples) == [f"t{k}" for k in range(10) if k != 4]
    (lost,) = samples.lost
    assert lost.name.startswith(f"{paths[0]}:") and lost.num_samples == 1
    assert "no member begins" in lost.reason


def test_a_sample_next_to_a_gap_stays_if_it_is_complete(tmp_path: Path) -> None:
    members = {"a.jpg": b"a", "a.txt": b"a", "a.json": b"{}", "b.jpg": b"b", "b.txt": b"b"}
    path = str(write_tar(tmp_path / "s.tar", members))
    damage(path, b"a.json")
    assert texts(ShardSamples([path], PARTS)) == ["a", "b"]


def test_a_missing_shard_counts_as_the_mean_and_a_cut_one_as_what_it_lacks(tmp_path: Path) -> None:
    paths = shards(tmp_path, [6, 8, 6, 6])
    os.unlink(paths[0])
    content = Path(paths[2]).read_bytes()
    Path(paths[2]).write_bytes(content[: content.index(b"016.txt") + 20])
    samples = ShardSamples(paths, PARTS)
    assert texts(samples) == [f"t{k}" for k in [*range(6, 14), 14, 15, *range(20, 26)]]
    assert [(lost.name.partition(":")[0], lost.num_samples) for lost in samples.lost] == [
        (paths[0], 7),
        (paths[2], 5),
    ]


@pytest.mark.parametrize("rest", ["nothing", "zeros"])
def test_a_shard_that_ends_between_two_samples_counts_as_what_it_lacks(
    tmp_path: Path, rest: str
) -> None:
    paths = shards(tmp_path, [6, 6, 6])
    whole = Path(paths[1]).read_bytes()
    intact = whole[: whole.index(b"008.jpg")]
    Path(paths[1]).write_bytes(intact + bytes({"nothing": 0, "zeros": 100_000}[rest]))
    samples = ShardSamples(paths, PARTS)
    assert texts(samples) == [f"t{k}" for k in [*range(8), *range(12, 18)]]
    (lost,) = samples.lost
    assert lost == (f"{paths[1]}:{len(intact)}", lost.reason, 4)
    assert lost.reason == f"no regular end of the archive at byte {len(intact)}"
    # Alone, or as long as the others, it may be how a program writes archives.
    assert not ShardSamples(paths[1:2], PARTS).lost
    Path(paths[1]).write_bytes(whole + bytes({"nothing": 0, "zeros": 100_000}[rest]))
    assert not ShardSamples(paths, PARTS).lost


def test_shards_are_indexed_once_and_an_interrupted_index_continues(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "CACHE_ABOVE_BYTES", 0)
    paths = shards(tmp_path, [4, 4, 4])
    done: list[str] = []

    def indexed(shard: str, parts: Parts, stop: int) -> dict[str, np.ndarray]:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(shard)
        return index_shard(shard, parts)

    monkeypatch.setattr(shard_index, "index_shard", lambda *keys: indexed(*keys, 2))
    with pytest.raises(KeyboardInterrupt):
        index_shards(paths, PARTS)
    assert done == paths[:2] and not (cache / "index").exists()
    monkeypatch.setattr(shard_index, "index_shard", lambda *keys: indexed(*keys, 99))
    first = index_shards(paths, PARTS).arrays
    assert done == paths and first.folder is not None
    assert index_shards(paths, PARTS).arrays.folder == first.folder and done == paths
    # One more shard, and one whose index was cut off: only these are read.
    (file,) = list((cache / "shards").rglob("*.npz"))[:1]
    file.write_bytes(file.read_bytes()[:50])
    paths.append(str(write_tar(tmp_path / "more.tar", {"x.jpg": b"x", "x.txt": b"more"})))
    assert texts(ShardSamples(paths, PARTS)) == [*(f"t{k}" for k in range(12)), "more"]
    assert len(done) == 5 and done[3] == paths[3]


def test_processes_of_a_machine_share_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "CACHE_ABOVE_BYTES", 0)
    paths = shards(tmp_path, [1] * 5)
    done: list[str] = []
    monkeypatch.setattr(
        shard_index, "index_shard", lambda *keys: done.append(keys[0]) or index_shard(*keys)
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    index_shards(paths, PARTS)
    # Its own first, then what the other process has not begun with.
    assert done == [paths[k] for k in (1, 3, 4, 2, 0)]


def test_the_digest_depends_on_content_and_not_on_the_folder(tmp_path: Path) -> None:
    one, two = (ShardSamples(shards(tmp_path / k, [2, 3]), PARTS).digest() for k in ("a", "b"))
    assert one == two != ShardSamples(shards(tmp_path / "c", [3, 2]), PARTS).digest()


def test_an_empty_file_is_a_lost_shard(tmp_path: Path) -> None:
    paths = shards(tmp_path, [4, 4])
    Path(paths[0]).write_bytes(b"")
    (lost,) = ShardSamples(paths, PARTS).lost
    assert (lost.name, lost.num_samples) == (f"{paths[0]}:0", 4)
    # An archive that ends properly and holds nothing is not damaged.
    write_tar(Path(paths[0]), {})
    assert not ShardSamples(paths, PARTS).lost


def test_without_any_sample_the_first_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"garbage" * 1000)
    with pytest.raises(DataError, match=r"s.tar is damaged \(no member begins at byte 0\)"):
        index_shards([str(tmp_path / "s.tar")], PARTS)
    with pytest.raises(DataError, match=r"none.tar: no such file"):
        index_shards([str(tmp_path / "none.tar")], PARTS)
