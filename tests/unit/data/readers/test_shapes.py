from __future__ import annotations

import time

import numpy as np
import pytest

from vlkd_cli.data.readers.shapes import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    SHAPES,
    UNSEEN,
    Scene,
    Shapes,
)


def kind(scene: Scene) -> tuple[str, ...]:
    return (
        scene.thing.color,
        scene.thing.shape,
        scene.thing.size,
        scene.thing.position,
        scene.background,
    )


def test_the_same_keys_draw_the_same_pictures_and_other_seeds_others() -> None:
    one, two, other = Shapes(num_samples=4), Shapes(num_samples=4), Shapes(num_samples=4, seed=1)
    for index in range(4):
        assert np.array_equal(one.image(index), two.image(index))
        assert not np.array_equal(one.image(index), other.image(index))
        assert one.image(index).size == (64, 64)


def test_no_kind_of_picture_is_in_two_splits_whatever_the_seed() -> None:
    kinds = {
        (split, seed): {kind(reader.scene(index)) for index in range(len(reader))}
        for split in ("train", "val", "test")
        for seed in (0, 1)
        if (reader := Shapes(num_samples=4000, split=split, seed=seed))  # type: ignore[arg-type]
    }
    for seed in (0, 1):
        for other in (0, 1):
            assert not kinds["train", seed] & kinds["val", other]
            assert not kinds["val", seed] & kinds["test", other]
            assert not kinds["train", seed] & kinds["test", other]


def test_every_class_is_in_every_split() -> None:
    for split in ("train", "val", "test"):
        reader = Shapes(split=split)  # type: ignore[arg-type]
        counts = np.bincount(
            reader.labels_of(np.arange(len(reader))), minlength=len(SHAPES) * len(COLORS)
        )
        assert counts.min() > 0


@pytest.mark.parametrize("relations", [False, True])
def test_unseen_combinations_occur_in_no_seen_picture_or_caption_though_their_words_do(
    relations: bool,
) -> None:
    seen = Shapes(num_samples=5000, relations=relations, combinations="seen")
    unseen = Shapes(num_samples=500, split="val", combinations="unseen")
    names = {CLASSES[label] for label in UNSEEN}
    assert (
        len(names)
        == len({name.split()[0] for name in names})
        == len({name.split()[1] for name in names})
        == len(SHAPES)
    )
    assert set(unseen.labels_of(np.arange(500)).tolist()) == UNSEEN
    assert set(seen.labels_of(np.arange(5000)).tolist()) == set(range(len(CLASSES))) - UNSEEN
    captions = " . ".join(caption for index in range(5000) for caption in seen.captions(index))
    assert not any(name in captions for name in names)
    assert all(word in captions for name in names for word in name.split())


def test_all_combinations_are_the_seen_and_the_unseen_ones_of_the_same_split() -> None:
    kinds = {
        combinations: {kind(reader.scene(index)) for index in range(len(reader))}
        for combinations in ("all", "seen", "unseen")
        if (reader := Shapes(num_samples=1500, split="val", combinations=combinations))  # type: ignore[arg-type]
    }
    assert kinds["all"] == kinds["seen"] | kinds["unseen"] and not kinds["seen"] & kinds["unseen"]


def test_the_full_captions_of_the_validation_pictures_are_all_different() -> None:
    reader = Shapes(split="val")
    assert len(reader) == 500
    for place in range(len(reader.captions(0))):
        assert len({reader.captions(index)[place] for index in range(500)}) == 500


def test_captions_describe_the_picture_and_the_label_is_color_and_shape() -> None:
    reader = Shapes(num_samples=50)
    assert reader.classes is not None
    for index in range(50):
        color, shape, size, position, background = kind(reader.scene(index))
        captions = reader.captions(index)
        assert reader.classes[reader.label(index)] == f"{color} {shape}"
        assert all(word in captions[0] for word in (color, shape, size, position, background))
        assert all(color in caption and shape in caption for caption in captions)


def test_the_picture_has_the_colors_at_the_position_in_the_caption() -> None:
    reader = Shapes(num_samples=60, size_px=64)
    for index in range(60):
        scene, pixels = reader.scene(index), np.asarray(reader.image(index)).astype(int)
        drawn = np.abs(pixels - COLORS[scene.thing.color]).max(-1) < 25
        assert drawn.sum() > 15
        rows, columns = np.nonzero(drawn)
        assert (
            abs(columns.mean() / 64 - scene.thing.center[0]) < 0.06
            and abs(rows.mean() / 64 - scene.thing.center[1]) < 0.06
        )
        ground = np.abs(pixels - BACKGROUNDS[scene.background]).max(-1) < 20
        assert ground.sum() > drawn.sum() / 2


def test_larger_words_are_larger_shapes() -> None:
    reader = Shapes(num_samples=2000)
    radii: dict[str, list[float]] = {}
    for index in range(2000):
        thing = reader.scene(index).thing
        radii.setdefault(thing.size, []).append(thing.radius)
    assert max(radii["small"]) < min(radii["medium"]) and max(radii["medium"]) < min(radii["large"])


def test_relations_hold_in_the_picture() -> None:
    reader = Shapes(num_samples=200, relations=True)
    found = set()
    for index in range(200):
        scene = reader.scene(index)
        if scene.other is None:
            continue
        found.add(scene.relation)
        (x, y), (u, v) = scene.thing.center, scene.other.center
        assert {"to the left of": x < u, "to the right of": x > u, "above": y < v, "below": y > v}[
            scene.relation
        ]
        assert (
            f"{scene.relation} a {scene.other.color} {scene.other.shape}"
            in reader.captions(index)[0]
        )
        assert scene.other.color != scene.thing.color
    assert len(found) == 4


def test_the_number_of_captions_is_the_same_for_every_picture() -> None:
    for relations in (False, True):
        reader = Shapes(num_samples=100, relations=relations)
        assert len({len(reader.captions(index)) for index in range(100)}) == 1


@pytest.mark.slow
def test_drawing_takes_less_than_a_millisecond() -> None:
    reader = Shapes(num_samples=1000)
    best = min(_seconds(reader) for _ in range(5))
    assert best / 200 < 1e-3


def _seconds(reader: Shapes) -> float:
    start = time.process_time()
    for index in range(200):
        reader.image(index)
    return time.process_time() - start
