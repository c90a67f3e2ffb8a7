from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.data_sets import encoded, photo, webdataset_data, write_tar
from vlkd_cli.data.batch import Broken, Sample
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import StreamReader
from vlkd_cli.data.readers.shard_stream import ShardStream
from vlkd_cli.data.readers.webdataset import WebDataset
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import ImageInput


def letters(texts: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[ord(text[-1])] for text in texts])}


def shards(folder: Path, count: int, samples: int, broken: frozenset[int] = frozenset()) -> str:
    """Shards of that many samples each; the caption of sample k ends in a letter of its own."""
    for shard in range(count):
        members: dict[str, bytes] = {}
        for number in range(shard * samples, (shard + 1) * samples):
            members[f"{number:04}.jpg"] = b"broken" if number in broken else encoded(photo(number))
            members[f"{number:04}.txt"] = f"caption {number} {chr(200 + number)}".encode()
        write_tar(folder / f"s{shard:02}.tar", members)
    return f"{folder}/s{{00..{count - 1:02}}}.tar"


def numbers(samples: Iterator[Sample]) -> list[int]:
    return [int(sample.captions[0].split()[1]) for sample in samples]


def test_local_shards_are_read_by_position(tmp_path: Path) -> None:
    reader = open_reader(webdataset_data(tmp_path))
    assert isinstance(reader, WebDataset) and len(reader) == 8
    assert (
        reader.image(5) == encoded(photo(5))
        and reader.captions(5) == ["caption of 5"]
        and reader.label(5) == 2
    )
    assert reader.name(5) == f"{tmp_path}/shard-1.tar:0005"


def test_shards_are_named_by_braces_wildcards_lists_and_splits(tmp_path: Path) -> None:
    webdataset_data(tmp_path / "val")
    for path in (
        f"{tmp_path}/val/shard-{{0..1}}.tar",
        f"{tmp_path}/val/shard-*.tar",
        [f"{tmp_path}/val/shard-{k}.tar" for k in (0, 1)],
    ):
        assert len(WebDataset(path=path)) == 8
    assert len(WebDataset(path=f"{tmp_path}/{{split}}/shard-0.tar", split="val")) == 4


def test_captions_come_from_text_or_from_a_json_with_one_or_several(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number, caption in enumerate(["one", ["two", "three"], None]):
        members[f"a/{number}.png"] = encoded(photo(number), "PNG")
        members[f"a/{number}.json"] = json.dumps({"text": caption, "url": "x"}).encode()
    path = str(write_tar(tmp_path / "shard.tar", members))
    reader = WebDataset(path=path, caption="json", caption_key="text")
    assert [reader.captions(index) for index in range(3)] == [["one"], ["two", "three"], []]
    assert [reader.caption_start(index) for index in range(4)] == [0, 1, 3, 3]


def test_a_sample_without_one_of_its_parts_is_broken(tmp_path: Path) -> None:
    reader = WebDataset(
        path=str(
            write_tar(
                tmp_path / "s.tar", {"a.jpg": b"x", "a.txt": b"a", "b.txt": b"b", "c.jpg": b"c"}
            )
        )
    )
    assert len(reader) == 3
    with pytest.raises(Broken, match="no member for the image"):
        reader.image(1)
    with pytest.raises(Broken, match="no member for the caption"):
        reader.captions(2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "{folder}/no-{0..1}.tar"}, r"no-0.tar: no such file"),
        ({"path": "{folder}/no-*.tar"}, r"no file matches"),
        ({"path": "{folder}/s-{0..1.tar"}, r"s-{0..1.tar: a brace is not closed"),
        ({"path": "{folder}/text.tar"}, r"text.tar is damaged \(.*Fetch it again"),
        ({"path": "{folder}/cut.tar"}, r"cut.tar is damaged"),
        (
            {"path": "{folder}/cut_in_header.tar"},
            r"cut_in_header.tar is damaged \(no member begins at byte \d+\)",
        ),
        (
            {"path": "{folder}/garbled.tar"},
            r"garbled.tar is damaged \(no member begins at byte \d+\)",
        ),
        ({"path": "{folder}/empty.tar"}, r"hold no sample"),
        (
            {"path": "{folder}/good.tar", "image": ["tif"]},
            r"no sample in .* has a member for the image: .tif",
        ),
        ({"path": "{folder}/good.tar", "caption": "json"}, r"set data.caption_key"),
        ({"path": "https://example.org/s-{0..3}.tar"}, r"Set data.samples_per_epoch"),
        (
            {"path": "https://example.org/s-{0..3}.tar", "stream": False},
            r"can only be read as a stream",
        ),
    ],
)
def test_shards_that_cannot_be_read_say_why(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    good = write_tar(tmp_path / "good.tar", {"a.jpg": encoded(photo(1)), "a.txt": b"a"})
    (tmp_path / "text.tar").write_text("no tar" * 200)
    whole = good.read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    second = whole.index(b"a.txt")
    (tmp_path / "cut_in_header.tar").write_bytes(whole[: second + 100])
    (tmp_path / "garbled.tar").write_bytes(whole[:second] + b"\xff" * 300 + whole[second + 300 :])
    write_tar(tmp_path / "empty.tar", {})
    keys["path"] = keys["path"].replace("{folder}", str(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        WebDataset(**keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_shares", [1, 2, 3, 6, 8])
def test_the_shares_of_a_stream_are_disjoint_and_complete(tmp_path: Path, num_shares: int) -> None:
    reader = open_reader(
        {
            "reader": "webdataset",
            "path": shards(tmp_path, 3, 8),
            "stream": True,
            "samples_per_epoch": 24,
        }
    )
    assert isinstance(reader, StreamReader)
    for epoch in range(2):
        shares = [
            numbers(reader.stream(epoch, 0, share, num_shares)) for share in range(num_shares)
        ]
        assert sorted(number for own in shares for number in own) == list(range(24))


def test_a_stream_is_shuffled_anew_in_each_epoch_and_fixed_by_its_seed(tmp_path: Path) -> None:
    reader = open_reader(
        {
            "reader": "webdataset",
            "path": shards(tmp_path, 3, 8),
            "stream": True,
            "samples_per_epoch": 24,
        }
    )
    assert isinstance(reader, StreamReader)
    orders = [
        numbers(reader.stream(epoch, seed, 0, 1))
        for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[0] != sorted(orders[0])


def test_resampled_shards_come_with_replacement_and_without_end(tmp_path: Path) -> None:
    section = {
        "reader": "webdataset",
        "path": shards(tmp_path, 4, 4),
        "resampled": True,
        "samples_per_epoch": 100,
        "shuffle_buffer": 8,
    }
    reader = open_reader(section)
    assert isinstance(reader, ShardStream)
    drawn = Counter(numbers(islice(reader.stream(0, 0, 0, 2), 400)))
    assert set(drawn) == set(range(16)) and max(drawn.values()) > min(drawn.values())


def test_stream_batches_are_the_same_for_any_number_of_workers_and_after_resuming(
    tmp_path: Path,
) -> None:
    section = {
        "reader": "webdataset",
        "path": shards(tmp_path, 4, 10, frozenset({13})),
        "stream": True,
        "samples_per_epoch": 40,
    }
    reader = open_reader(section)
    shown: Any = {"image": ImageView(ImageInput(size_px=(16, 16))), "text": TextView(letters)}

    def batches(workers: int, start: int = 0) -> list[Any]:
        loader = Loader(reader, shown, batch_size=4, seed=2, workers=workers, max_broken_share=0.5)
        drawn = list(loader.batches(1, start))
        loader.close()
        return drawn

    alone = batches(0)
    assert len(alone) == 10
    assert {skipped.name for batch in alone for skipped in batch.skipped} == {
        f"{tmp_path}/s01.tar:0013"
    }
    for other, expected in (
        (batches(2), alone),
        (batches(3), alone),
        (batches(0, 5), alone[5:]),
        (batches(2, 5), alone[5:]),
    ):
        assert len(other) == len(expected)
        for one, two in zip(other, expected, strict=True):
            assert torch.equal(one.inputs["image"], two.inputs["image"])
            assert torch.equal(one.inputs["text"]["input_ids"], two.inputs["text"]["input_ids"])
            assert one.skipped == two.skipped


def test_local_shards_train_like_any_reader(tmp_path: Path) -> None:
    reader = open_reader({"reader": "webdataset", "path": shards(tmp_path, 2, 8)})
    loader = Loader(reader, {"text": TextView(letters)}, batch_size=4, seed=0)
    seen = [row for batch in loader.batches(0) for row in batch.indices.tolist()]
    assert sorted(seen) == list(range(16)) and seen != sorted(seen)


def test_a_pipe_is_a_stream_and_its_failure_names_it(tmp_path: Path) -> None:
    path = shards(tmp_path, 1, 4).replace("{00..00}", "00")
    reader = open_reader(
        {"reader": "webdataset", "path": f"pipe:cat {path}", "samples_per_epoch": 4}
    )
    assert isinstance(reader, StreamReader) and sorted(numbers(reader.stream(0, 0, 0, 1))) == [
        0,
        1,
        2,
        3,
    ]
    failing = open_reader(
        {
            "reader": "webdataset",
            "path": f"pipe:cat {tmp_path}/none.tar 2>/dev/null",
            "samples_per_epoch": 4,
        }
    )
    assert isinstance(failing, StreamReader)
    with pytest.raises(DataError, match=r"shard pipe:cat .*none.tar .*cannot be read"):
        list(failing.stream(0, 0, 0, 1))
