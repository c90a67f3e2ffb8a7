"""Features are computed once, survive an interruption, and do not depend on the number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.fakes import FakeReader, FakeTower, random_feature
from tests.support.ranks import run_on_ranks
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.features.encode import embed_images, embed_texts
from vlkd_cli.features.store import FeatureStore
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec


def subject(cache: Path | None = None, **keys: Any) -> Subject:
    return Subject(
        FakeTower("image", random_feature(6, 1), 6),
        FakeTower("text", random_feature(6, 2), 6),
        batch_size=4,
        cache=cache,
        **keys,
    )


def test_images_are_embedded_in_the_order_of_the_data() -> None:
    reader = FakeReader([0] * 21)
    own = subject()
    expected = torch.stack([random_feature(6, 1)(position) for position in range(21)])
    torch.testing.assert_close(embed_images(own, reader), expected)
    torch.testing.assert_close(embed_images(own, reader, indices=[20, 3, 3]), expected[[20, 3, 3]])


def test_texts_are_embedded_in_their_order_and_repeated_ones_once() -> None:
    own = subject()
    texts = ["a", "a longer text", "a", "short", "", "an even longer text than that"]
    expected = torch.stack([random_feature(6, 2)(text) for text in texts])
    torch.testing.assert_close(embed_texts(own, texts), expected)
    assert own.text is not None and own.text.encoded == 5


@pytest.mark.parametrize("cached", ["on disk", "in memory"])
def test_a_second_pass_costs_no_tower(cached: str, tmp_path: Path) -> None:
    own = subject(tmp_path if cached == "on disk" else None)
    reader = FakeReader([0] * 9)
    first = embed_images(own, reader), embed_texts(own, ["x", "y"])
    again = embed_images(own, reader), embed_texts(own, ["x", "y"])
    assert own.image is not None and own.text is not None
    assert (own.image.encoded, own.text.encoded) == (9, 2)
    for former, later in zip(first, again, strict=True):
        torch.testing.assert_close(former, later, rtol=0, atol=0)


def test_another_process_finds_the_features_on_disk(tmp_path: Path) -> None:
    reader = FakeReader([0] * 9)
    first = embed_images(subject(tmp_path), reader)
    later = subject(tmp_path)
    torch.testing.assert_close(embed_images(later, reader), first, rtol=0, atol=0)
    assert later.image is not None and later.image.encoded == 0


def test_other_data_weights_precision_or_transform_are_other_features(tmp_path: Path) -> None:
    embed_images(subject(tmp_path), FakeReader([0] * 5))
    others = [
        subject(tmp_path),
        subject(tmp_path),
        subject(tmp_path, precision="bf16"),
        subject(tmp_path),
    ]
    assert others[1].image is not None and others[3].image is not None
    others[1].image.name = "other weights"
    others[3].image.input = others[3].image.input._replace(size_px=(16, 16))
    readers = [FakeReader([0] * 5, name="other"), *[FakeReader([0] * 5)] * 3]
    for own, reader in zip(others, readers, strict=True):
        embed_images(own, reader)
        assert own.image is not None and own.image.encoded == 5


def test_a_subset_computes_only_its_rows_and_the_rest_is_added_later(tmp_path: Path) -> None:
    own = subject(tmp_path)
    reader = FakeReader([0] * 30)
    embed_images(own, reader, indices=range(0, 30, 3))
    assert own.image is not None and own.image.encoded == 10
    embed_images(own, reader)
    assert own.image.encoded == 30


class Interrupting(FakeTower):
    """Stops as if the process were killed, after so many images."""

    left = 200

    def features(self, inputs: Any) -> torch.Tensor:
        self.left -= len(inputs)
        if self.left < 0:
            raise KeyboardInterrupt
        return super().features(inputs)


def test_an_interrupted_pass_resumes_where_it_stopped(tmp_path: Path) -> None:
    reader = FakeReader([0] * 300)
    stopped = Subject(
        Interrupting("image", random_feature(6, 1), 6), None, batch_size=4, cache=tmp_path
    )
    with pytest.raises(KeyboardInterrupt):
        embed_images(stopped, reader)
    later = subject(tmp_path)
    features = embed_images(later, reader)
    assert (
        later.image is not None and later.image.encoded == 300 - 192
    )  # three whole windows of 16 batches were cached
    torch.testing.assert_close(features, embed_images(subject(), reader), rtol=0, atol=0)


def test_the_head_is_applied_to_cached_features_and_follows_its_weights(tmp_path: Path) -> None:
    head = nn.Linear(6, 3)
    own = Subject(
        FakeTower("image", random_feature(6, 1), 6, head=head, output_width=3),
        None,
        batch_size=4,
        cache=tmp_path,
    )
    reader = FakeReader([0] * 9)
    backbone = embed_images(own, reader, point="backbone")
    torch.testing.assert_close(embed_images(own, reader), head(backbone).detach())
    with torch.no_grad():
        head.weight.mul_(2)
    torch.testing.assert_close(embed_images(own, reader), head(backbone).detach())
    assert own.image is not None and own.image.encoded == 9


def test_the_tower_is_in_eval_mode_meanwhile_and_as_before_afterwards() -> None:
    own = subject()
    tower = own.image
    assert tower is not None
    tower.head = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    tower.train()
    tower.head[1].eval()
    one, two = embed_images(own, FakeReader([0] * 9)), embed_images(own, FakeReader([0] * 9))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert tower.training and tower.head[0].training and not tower.head[1].training


class Broken(FakeReader):
    def image(self, index: int) -> Any:
        return b"no picture" if index == 7 else super().image(index)


def test_a_broken_image_is_named() -> None:
    with pytest.raises(DataError, match="fake/7"):
        embed_images(subject(), Broken([0] * 9))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    store = FeatureStore(tmp_path / "table", 4, 2)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="the disk is full"):
        store.write(np.arange(2), np.ones((2, 2), dtype=np.float32))
    assert not FeatureStore(tmp_path / "table", 4, 2).done.any()


def test_a_damaged_table_is_made_again(tmp_path: Path) -> None:
    FeatureStore(tmp_path / "table", 4, 2).write(np.arange(4), np.ones((4, 2), dtype=np.float32))
    (tmp_path / "table" / "features.npy").write_bytes(b"damaged")
    assert not FeatureStore(tmp_path / "table", 4, 2).done.any()


def everything_on_this_rank(cache: Path | None) -> tuple[Any, ...]:
    """Features and suites of one rank: cached on disk, in memory, and what suites make of
    them."""
    reader = FakeReader([position % 3 for position in range(150)], classes=["a", "b", "c"])
    texts = [f"text {number * 7919 % 1000}" for number in range(90)]
    own = subject(cache)
    features = (
        embed_images(own, reader).numpy(),
        embed_texts(own, texts).numpy(),
        embed_images(own, reader, indices=[5, 2]).numpy(),
    )
    specs = [
        EvalSpec(suite="retrieval", data={"reader": "shapes", "num_samples": 40, "split": "val"})
    ]  # type: ignore[call-arg]
    torch.manual_seed(0)
    linear = nn.Linear(3 * 64, 8)
    pixels = Pixels(linear)
    suites = run_suites(Subject(pixels, own.text, batch_size=4, cache=cache), specs)
    return *features, {name: value for result in suites for name, value in result.metrics.items()}


class Pixels(FakeTower):
    """A tower of real pixels: its features depend on the rounding of the batch they are computed
    in."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__("image", lambda key: key, 6)
        self.linear = linear

    def features(self, inputs: Any) -> torch.Tensor:
        small = nn.functional.adaptive_avg_pool2d(inputs.float() / 255, 8).flatten(1)
        return self.linear(small)[:, :6]


def failing_rank() -> str:
    try:
        embed_images(subject(), Broken([0] * 200))
    except DataError as error:
        return str(error)
    return ""


def on_ranks(folder: str) -> Any:
    return everything_on_this_rank(Path(folder)), everything_on_this_rank(None), failing_rank()


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_ranks_gives_the_same_numbers(world_size: int, tmp_path: Path) -> None:
    expected = everything_on_this_rank(None)
    for disk, memory, failure in run_on_ranks(on_ranks, world_size, str(tmp_path)):
        for found in (disk, memory):
            for own, other in zip(expected[:3], found[:3], strict=True):
                np.testing.assert_array_equal(own, other)
            assert found[3] == expected[3]
        assert "fake/7" in failure  # also on the ranks that did not read it


class Looked(FakeReader):
    """Counts how often its files would be looked into."""

    times = 0

    def __init__(self, *, split: str = "val") -> None:
        labels = [row % 4 for row in range(24)]
        super().__init__(labels, classes=list("abcd"), offset=100 * (split == "val"), split=split)

    def fingerprint(self) -> str:
        Looked.times += 1
        return f"{super().fingerprint()} {self.split}"


def test_the_files_of_a_data_set_are_looked_into_once_for_all_suites() -> None:
    data = {"reader": f"{__name__}:Looked"}
    names = ("zero_shot", "knn", "few_shot")
    specs = [EvalSpec.model_validate({"suite": name, "data": data}) for name in names]
    run_suites(subject(), specs)
    # For the rows and for the images, of the training part and the other one.
    assert Looked.times == 4
