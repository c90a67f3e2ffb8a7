from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.data_sets import encoded, photo, webdataset_data, write_tar
from vlkd_cli.data.batch import Broken, Sample
from vlkd_cli.data.files.tar_members import Parts
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


def test_shards_of_a_folder_are_found_however_their_suffix_is_written(tmp_path: Path) -> None:
    webdataset_data(tmp_path)
    (tmp_path / "shard-1.tar").rename(tmp_path / "shard-1.TAR")
    assert len(open_reader({"reader": "webdataset", "path": str(tmp_path)})) == 8


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
            r"cut_in_header.tar is damaged \(unexpected end of data at byte \d+\)",
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
            {"path": "{folder}/good.tar", "samples_per_epoch": 5},
            r"data.samples_per_epoch has no effect: local shards are read with random access",
        ),
        ({"path": "{folder}/good.tar", "shuffle_buffer": 5}, r"data.shuffle_buffer has no effect"),
        (
            {"path": "https://example.org/s-{0..3}.tar", "stream": False},
            r"can only be streamed",
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
def test_the_parts_of_a_stream_are_disjoint_and_complete(tmp_path: Path, num_shares: int) -> None:
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


def test_a_stream_is_shuffled_again_in_each_epoch_and_fixed_by_its_seed(tmp_path: Path) -> None:
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


def lost_of(paths: list[Path], epoch: int = 0) -> tuple[list[int], list[Sample]]:
    """Numbers of the samples that one share reads of shards of six, and what is lost."""
    count = 6 * len(paths)
    stream = ShardStream(list(map(str, paths)), Parts(("jpg",), ("txt",)), samples_per_epoch=count)
    samples = list(stream.stream(epoch, 0, 0, 1))
    read = sorted(numbers(sample for sample in samples if not sample.problem))
    return read, [sample for sample in samples if sample.problem]


@pytest.mark.parametrize("rest", [b"", bytes(100_352)], ids=["nothing", "zeros"])
def test_a_stream_notices_a_shard_cut_off_between_two_samples(tmp_path: Path, rest: bytes) -> None:
    shards(tmp_path, 3, 6)
    paths = sorted(tmp_path.glob("*.tar"))
    whole = paths[1].read_bytes()
    intact = whole[: whole.index(b"0008.jpg")]
    paths[1].write_bytes(intact + rest)
    for epoch in range(4):  # the cut shard is read first in some, last in others
        read, (lost,) = lost_of(paths, epoch)
        assert read == [*range(8), *range(12, 18)]
        assert (lost.name, lost.num_samples) == (str(paths[1]), 4)
        assert lost.problem == f"no regular end of the archive at byte {len(intact)}"
    # Alone, or as long as the others, it may be how a program writes archives.
    assert lost_of(paths[1:2]) == ([6, 7], [])
    end = -(-len(whole.rstrip(b"\0")) // 512) * 512
    paths[1].write_bytes(whole[:end] + rest)
    assert lost_of(paths) == (list(range(18)), [])


def test_a_stream_that_ends_within_a_sample_loses_it_and_what_follows(tmp_path: Path) -> None:
    shards(tmp_path, 2, 6)
    paths = sorted(tmp_path.glob("*.tar"))
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: whole.index(b"0008.txt")])  # behind the image of the third
    read, (lost,) = lost_of(paths)
    assert read == list(range(8)) and (lost.name, lost.num_samples) == (str(paths[1]), 4)


def test_a_header_of_zeros_is_damage_and_an_appended_archive_is_read(tmp_path: Path) -> None:
    shards(tmp_path, 3, 6)
    paths = sorted(tmp_path.glob("*.tar"))
    content = bytearray(paths[1].read_bytes())
    place = content.index(b"0008.jpg")
    content[place : place + 512] = bytes(512)
    paths[1].write_bytes(content)
    read, (lost,) = lost_of(paths)
    assert read == [*range(8), *range(12, 18)]
    assert f"no member begins at byte {place}" in lost.problem
    paths[0].write_bytes(paths[0].read_bytes() + paths[2].read_bytes() + b"junk" * 200)
    assert lost_of(paths[:1]) == ([*range(6), *range(12, 18)], [])


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
    loader = Loader(failing, {"text": TextView(letters)}, batch_size=4, seed=0)
    with pytest.raises(DataError, match=r"broken, the first: pipe:cat .*none.tar .*cannot be read"):
        list(loader.batches(0))


def sidecars(folder: Path, *contents: bytes | str, name: str = "s.tar") -> dict[str, Any]:
    """A shard whose samples have these json members, and the section that reads them."""
    members: dict[str, bytes] = {}
    for number, content in enumerate(contents):
        members[f"{number:03}.jpg"] = encoded(photo(number))
        members[f"{number:03}.json"] = content.encode() if isinstance(content, str) else content
    path = str(write_tar(folder / name, members))
    return {"reader": "webdataset", "path": path, "caption": "json", "caption_key": "caption"}


GOOD = '{"caption": "cap"}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"caption": "cut o', "Unterminated string"),
        ("", "Expecting value"),
        (b'{"caption": "caf\xe9"}', "byte 16 is not utf-8 text"),
        ("[" * 100_000, "nested too deeply"),
        ('{"caption": {"en": "cap"}}', "key 'caption' holds an object, not text"),
        ('{"caption": [{"en": "cap"}]}', "key 'caption' holds an object, not text"),
        ('{"caption": 3}', "key 'caption' holds a number, not text"),
        ('{"caption": true}', "key 'caption' holds a truth value, not text"),
        ('{"captoin": "cap"}', "the json has no key 'caption'"),
        ("[1]", "the json holds a list, not an object"),
    ],
)
def test_one_json_without_a_text_breaks_its_sample_alone(
    tmp_path: Path, content: bytes | str, reason: str
) -> None:
    section = sidecars(tmp_path, GOOD, content, GOOD, GOOD)
    reader: Any = open_reader(section)
    assert [reader.caption_start(k) for k in range(5)] == [0, 1, 1, 2, 3]
    assert reader.captions(3) == ["cap"] and reader.image(1)
    with pytest.raises(Broken, match=f"its caption cannot be read: .*{reason}"):
        reader.captions(1)
    for stream in (False, True):
        keys = {"stream": True, "samples_per_epoch": 4} if stream else {}
        loader = Loader(
            open_reader(section | keys),
            {"t": TextView(letters)},
            batch_size=4,
            seed=0,
            max_broken_share=1,
        )
        skipped = [skipped for batch in loader.batches(0) for skipped in batch.skipped]
        assert skipped and {each.name for each in skipped} == {f"{section['path']}:001"}
        assert all(reason in each.reason for each in skipped)


@pytest.mark.parametrize("bad", ['{"caption": "x"}', '{"score": "high"}', '{"score": 1e300}', "["])
def test_targets_are_numbers_of_the_json_and_a_sample_without_one_is_broken(
    tmp_path: Path, bad: str
) -> None:
    good = [f'{{"caption": "c", "score": {number}, "margin": "-1.5"}}' for number in range(3)]
    section = sidecars(tmp_path, *good, bad) | {"target": ["score", "margin"], "caption": "txt"}
    section |= {"caption": None, "caption_key": None}
    reader: Any = open_reader(section)
    assert reader.num_targets == 2 and reader.num_captions == 0
    assert reader.targets_of(np.arange(3)).tolist() == [[0, -1.5], [1, -1.5], [2, -1.5]]
    for keys in ({}, {"stream": True, "samples_per_epoch": 32}):
        loader = Loader(open_reader(section | keys), {}, batch_size=4, seed=0, max_broken_share=1)
        batch = next(loader.batches(0))
        assert batch.targets is not None and batch.targets.dtype == torch.float32
        assert set(batch.targets[:, 0].tolist()) <= {0, 1, 2}
        assert batch.targets[:, 1].tolist() == [-1.5] * 4
        assert {(one.name, one.reason) for one in batch.skipped} <= {
            (f"{section['path']}:003", "its target is not a finite number")
        }


def test_a_target_that_no_json_has_is_refused_when_opened(tmp_path: Path) -> None:
    section = sidecars(tmp_path, GOOD, GOOD) | {"target": "scroe"}
    with pytest.raises(DataError, match=r"no sample in .*s.tar has .* data.target 'scroe'"):
        open_reader(section)


def test_a_json_with_a_byte_order_mark_or_a_lone_surrogate_is_read(tmp_path: Path) -> None:
    reader: Any = open_reader(
        sidecars(tmp_path, b"\xef\xbb\xbf" + GOOD.encode(), '{"caption": "\\ufeffa \\ud83d b"}')
    )
    assert [reader.captions(k) for k in (0, 1)] == [["cap"], ["a \ufffd b"]]


def test_a_key_that_no_json_has_is_refused_when_opened(tmp_path: Path) -> None:
    section = sidecars(tmp_path, '{"text": "a"}', '{"text": "b"}')
    with pytest.raises(DataError, match=r"under data.caption_key .*s.tar:000: .*no key 'caption'"):
        open_reader(section)


def test_a_text_member_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": b"x", "a.txt": b"\xef\xbb\xbfcap 0\n"})
    reader: Any = open_reader({"reader": "webdataset", "path": str(path)})
    assert reader.captions(0) == ["cap 0"]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"image": "JPG", "caption": "TXT"},
        {"image": [".jpg"], "caption": ".txt", "label": ".CLS"},
        {"image": ["png", "Jpg"], "label": "cLs"},
    ],
)
def test_suffixes_match_in_any_case_and_with_a_leading_dot(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    path = write_tar(
        tmp_path / "s.tar", {"./a.JPG": encoded(photo(0)), "./a.TXT": b"cap", "./a.CLS": b"3"}
    )
    section = {"reader": "webdataset", "path": str(path)} | keys
    reader: Any = open_reader(section)
    assert reader.image(0) == encoded(photo(0))
    assert (reader.captions(0), reader.label(0)) == (["cap"], 3)
    stream: Any = open_reader(section | {"stream": True, "samples_per_epoch": 1})
    (sample,) = stream.stream(0, 0, 0, 1)
    assert (sample.image, sample.captions, sample.label) == (encoded(photo(0)), ["cap"], 3)


@pytest.mark.parametrize("keys", [{"image": []}, {"image": ""}, {"image": ["."]}, {"caption": "."}])
def test_empty_suffixes_are_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": b"x", "a.txt": b"a"})
    with pytest.raises(DataError, match="is empty; it must be a suffix such as jpg"):
        WebDataset(path=str(path), **keys)


def test_hidden_members_are_not_data(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "s.tar",
        {
            "._a.jpg": b"x",
            "a.jpg": b"a",
            "._a.txt": b"x",
            "a.txt": b"a",
            "__MACOSX/a.jpg": b"x",
            "c/.thumbs/b.jpg": b"x",
            "c/b.jpg": b"b",
            "c/b.txt": b"b",
        },
    )
    section = {"reader": "webdataset", "path": str(path)}
    reader: Any = open_reader(section)
    assert [reader.name(k).partition(":")[2] for k in range(len(reader))] == ["a", "c/b"]
    stream: Any = open_reader(section | {"stream": True, "samples_per_epoch": 2})
    assert sorted(sample.image for sample in stream.stream(0, 0, 0, 1)) == [b"a", b"b"]


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_shard_is_called_so_and_read_as_a_stream(tmp_path: Path, mode: str) -> None:
    import tarfile

    plain = write_tar(tmp_path / "plain.tar", {"a.jpg": encoded(photo(0)), "a.txt": b"a"})
    with tarfile.open(tmp_path / "packed.tar", f"w:{mode}") as tar:  # type: ignore[call-overload]
        with tarfile.open(plain) as source:
            for member in source:
                tar.addfile(member, source.extractfile(member))
    section = {"reader": "webdataset", "path": f"{tmp_path}/packed.tar"}
    with pytest.raises(DataError, match=r"packed.tar is compressed \(.*Unpack it.*stream: true"):
        open_reader(section)
    stream: Any = open_reader(section | {"stream": True, "samples_per_epoch": 1})
    assert [sample.captions for sample in stream.stream(0, 0, 0, 1)] == [["a"]]


def test_a_path_that_exists_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("set[1]", "a{b,c}", "q?*", "plain"):
        for number in range(2):
            write_tar(tmp_path / folder / f"{number}.tar", {"a.jpg": b"x", "a.txt": b"a"})
    for path, count in (
        (f"{tmp_path}/set[1]/0.tar", 1),
        (f"{tmp_path}/set[1]/*.tar", 2),
        (f"{tmp_path}/set[1]/{{0..1}}.tar", 2),
        (f"{tmp_path}/a{{b,c}}/0.tar", 1),
        (f"{tmp_path}/q?*/1.tar", 1),
        (f"{tmp_path}/plain/[01].tar", 2),
        ("~/plain/*.tar", 2),
    ):
        assert len(WebDataset(path=path)) == count, path
    assert len(WebDataset(path=f"{tmp_path}/plain")) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none is a folder without shards"):
        WebDataset(path=f"{tmp_path}/none")


def test_large_class_numbers_are_numbered_as_ids(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number, label in enumerate([10**12 + 5, 10**12, 10**30]):
        members |= {f"{number}.jpg": b"x", f"{number}.txt": b"a", f"{number}.cls": b"%d" % label}
    reader = WebDataset(path=str(write_tar(tmp_path / "s.tar", members)))
    assert reader.labels_of(np.arange(3)).tolist() == [1, 0, -1]
    assert reader.classes == [str(10**12), str(10**12 + 5)]


def test_a_member_that_claims_more_bytes_than_the_shard_has_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": b"x", "a.txt": b"a", "b.jpg": b"y"})
    header = path.read_bytes().index(b"b.jpg")
    changed = bytearray(path.read_bytes())
    changed[header + 124 : header + 136] = b"77777777777\0"
    checksum = (
        sum(changed[header : header + 148]) + 8 * 32 + sum(changed[header + 156 : header + 512])
    )
    changed[header + 148 : header + 156] = b"%06o\0 " % checksum
    path.write_bytes(bytes(changed))
    with pytest.raises(DataError, match=r"s.tar:2048: unexpected end of data at byte .*Fetch it"):
        open_reader({"reader": "webdataset", "path": str(path)})


def test_named_texts_come_from_keys_of_the_json(tmp_path: Path) -> None:
    section = sidecars(
        tmp_path,
        '{"caption": "q", "good": ["a", "b"], "bad": "no", "more": "c"}',
        '{"caption": ["q1", "q2"], "good": "a", "more": null, "bad": "x"}',
    ) | {"texts": {"answer": ["good", "more"], "wrong": "bad"}}
    reader: Any = open_reader(section)
    assert reader.text_names == ("answer", "wrong")
    assert reader.captions(0) == ["q", "a", "b", "c", "no"]
    assert [reader.text_span(0, name) for name in ("main", "answer", "wrong")] == [
        *((0, 1), (1, 4), (4, 5))
    ]
    assert [reader.text_span(1, name) for name in ("main", "answer", "wrong")] == [
        *((0, 2), (2, 3), (3, 4))
    ]
    assert [reader.caption_start(k) for k in range(3)] == [0, 5, 9]


def test_images_alone_have_no_captions(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "s.tar", {"a.jpg": b"x", "b.jpg": b"y"}))
    reader = WebDataset(path=path, caption=None)
    assert not reader.has_captions and reader.num_captions == 0 and reader.captions(1) == []
    with pytest.raises(DataError, match="data.caption_key 'a' has no effect: data.caption is null"):
        WebDataset(path=path, caption=None, caption_key="a")
