"""Rendered pictures of colored shapes with captions: data that needs no download, with known
ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.loading.shuffling import hashed, permuted
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import NonNegativeInt, PositiveInt

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLORS = {
    "red": (222, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 90, 235),
    "yellow": (245, 220, 50),
    "purple": (150, 60, 190),
    "orange": (250, 140, 30),
    "cyan": (60, 210, 220),
    "pink": (250, 140, 190),
}
BACKGROUNDS = {
    "black": (12, 12, 12),
    "white": (243, 243, 243),
    "grey": (128, 128, 128),
    "brown": (92, 58, 34),
    "navy": (20, 26, 78),
}
SIZES = {"small": 0.16, "medium": 0.21, "large": 0.26}
"""Radius as a fraction of the picture's side."""
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
CLASSES = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
UNSEEN = frozenset(index * len(COLORS) + index + 1 for index in range(len(SHAPES)))
"""Labels of the classes that `combinations: seen` leaves out: one of each shape, none twice in a
color, so both words are known."""
TEMPLATES = ("a {}", "a picture of a {}", "there is a {} here")
_KINDS = len(CLASSES) * len(SIZES) * len(POSITIONS) * len(BACKGROUNDS)
_SPLITS = {"train": (0, 70), "val": (70, 85), "test": (85, 100)}  # percent of all kinds of picture
_NUM_SAMPLES = {"train": 10_000, "val": 500, "test": 500}
_BLOCK = 16_384
_DRAWING = 3  # raised whenever the same keys would give other pictures or captions


class Thing(NamedTuple):
    """One shape and where it is; `center` and `radius` are fractions of the picture's side."""

    color: str
    shape: str
    size: str
    position: str
    center: tuple[float, float]
    radius: float
    angle: float


class Scene(NamedTuple):
    """What a picture shows."""

    thing: Thing
    background: str
    other: Thing | None = None
    relation: str = ""


class Shapes(Reader):
    """Pictures of one colored shape, or of two in a relation, rendered when asked for and the same
    for the same keys.

    A kind of picture is a color, shape, size, position and background. The splits share no kind,
    though every color and shape occurs in all of them, and within a split no kind comes twice
    before all were used; so on 500 validation pictures every full caption fits one picture only.
    The class is color x shape, of the first-named shape.

    Args:
        num_samples: pictures; by default 10,000 to train on and 500 to validate or test.
        size_px: height and width.
        seed: of the pictures.
        split: "train", "val" or "test".
        relations: render a second, small shape next to the first, and describe where in the
        captions.
        short_captions: whether captions that name only color and shape are among those of a
            picture; by default in training only, since such captions fit many pictures.
        combinations: "all" classes; all but six of the 48, "seen"; or those six, "unseen". Train on
            the seen and validate on the unseen to see whether a model puts a known color and a
            known shape together; candidates are still all 48.
        colors: only pictures whose (first) shape has one of these colors; null: all eight.
            Candidates are still all 48.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "text", "label"})
    templates = TEMPLATES
    classes = CLASSES
    has_columns = True
    column_names = ("color", "shape", "size", "position", "background")

    def __init__(
        self,
        *,
        num_samples: PositiveInt | None = None,
        size_px: PositiveInt = 64,
        seed: NonNegativeInt = 0,
        split: Literal["train", "val", "test"] = "train",
        relations: bool = False,
        short_captions: bool | None = None,
        combinations: Literal["all", "seen", "unseen"] = "all",
        colors: list[str] | None = None,
    ) -> None:
        if split not in _SPLITS:
            raise DataError(f"data.split '{split}': reader 'shapes' has train, val and test.")
        self.num_samples = num_samples or _NUM_SAMPLES[split]
        self.size_px, self.seed, self.split, self.relations = size_px, seed, split, relations
        self.short_captions = split == "train" if short_captions is None else short_captions
        self.combinations = combinations
        first, last = (share * _KINDS // 100 for share in _SPLITS[split])
        # One fixed shuffle deals the kinds to the splits, whatever the seed: a model trained on one
        # seed meets no validation kind.
        kinds = permuted(np.arange(first, last), _KINDS, hashed(20_231))
        unseen = np.isin(kinds % len(CLASSES), list(UNSEEN))
        self._split_kinds = {"all": kinds, "seen": kinds[~unseen], "unseen": kinds[unseen]}[
            combinations
        ]
        self.colors = None if colors is None else tuple(sorted(set(colors)))
        if self.colors is not None:
            self._split_kinds = _of_colors(self._split_kinds, self.colors)
        grid = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
        self._x, self._y = np.meshgrid(grid, grid)
        self._blocks: dict[int, np.ndarray] = {}
        self._last: tuple[int, Scene] | None = None
        self._num_captions = len(self.captions(0))

    def __len__(self) -> int:
        return self.num_samples

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.draw(self.scene(index), self._generator(index, 1)))

    def captions(self, index: int) -> Sequence[str]:
        scene = self.scene(index)
        thing, background = scene.thing, scene.background
        what, where = f"{thing.color} {thing.shape}", _where(thing.position)
        captions = [
            f"a {thing.size} {what} {where} of a {background} picture",
            f"a picture with a {background} background and a {thing.size} {what} {where}",
            f"{what}, {thing.size}, {thing.position}, on {background}",
            f"on {background} there is a {thing.shape} in {thing.color}, {thing.size}, {where}",
        ]
        if scene.other is not None:
            beside = f"{scene.relation} a {scene.other.color} {scene.other.shape}"
            captions = [f"{caption}, {beside}" for caption in captions] + [f"a {what} {beside}"]
        if self.short_captions:
            captions += [f"a {what}", f"a picture of a {what}", f"there is a {what} here", what]
        return captions

    def label(self, index: int) -> int:
        return self._kind(index) % len(CLASSES)

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return np.fromiter(
            (self._kind(index) for index in indices.tolist()), dtype=np.int64, count=len(indices)
        ) % len(CLASSES)

    def column(self, name: str) -> Sequence[str]:
        if name not in self.column_names:
            guess = did_you_mean(name, self.column_names)
            raise DataError(
                f"reader 'shapes' has no column '{name}'.{guess} Columns:"
                f" {', '.join(self.column_names)}."
            )
        scenes = map(self.scene, range(len(self)))
        if name == "background":
            return [scene.background for scene in scenes]
        return [str(getattr(scene.thing, name)) for scene in scenes]

    def name(self, index: int) -> str:
        return f"rendered picture {index}"

    def fingerprint(self) -> str:
        keys = (
            self.num_samples,
            self.size_px,
            self.seed,
            self.split,
            self.relations,
            self.short_captions,
            self.combinations,
        )
        of_colors = () if self.colors is None else (self.colors,)
        return digest_of("shapes", _DRAWING, *keys, *of_colors)

    def caption_start(self, index: int) -> int:
        return index * self._num_captions

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(indices) * self._num_captions

    def scene(self, index: int) -> Scene:
        """What the picture at a position shows."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if self._last is None or self._last[0] != index:
            self._last = index, self._imagined(index)
        return self._last[1]

    def _imagined(self, index: int) -> Scene:
        draw = self._generator(index, 0)
        kind, label = divmod(self._kind(index), len(CLASSES))
        color, shape = CLASSES[label].split()
        kind, size = divmod(kind, len(SIZES))
        background, where = divmod(kind, len(POSITIONS))
        jitter = draw.uniform(-1, 1, 4).tolist()
        row, column = divmod(where, 3)
        radius = list(SIZES.values())[size] * (1 + 0.1 * jitter[0])
        # Large shapes still lie within the picture: the outer positions are as far from its edge as
        # the radius asks for.
        reach = min(0.3, 0.5 - radius)
        center = (
            0.5 + (column - 1) * reach + 0.03 * jitter[1],
            0.5 + (row - 1) * reach + 0.03 * jitter[2],
        )
        thing = Thing(
            color, shape, list(SIZES)[size], POSITIONS[where], center, radius, 0.15 * jitter[3]
        )
        scene = Scene(thing, list(BACKGROUNDS)[background])
        return self._with_other(scene, draw) if self.relations else scene

    def draw(self, scene: Scene, noise: np.random.Generator) -> np.ndarray:
        """`[size, size, 3]` uint8."""
        picture = np.empty((self.size_px, self.size_px, 3), dtype=np.float32)
        picture[:] = np.asarray(BACKGROUNDS[scene.background]) + noise.uniform(-8, 8, 3)
        for thing in (scene.thing, scene.other):
            if thing is not None:
                color = (np.asarray(COLORS[thing.color]) + noise.uniform(-12, 12, 3)).astype(
                    np.float32
                )
                picture += self._coverage(thing)[..., None] * (color - picture)
        grain = noise.integers(-5, 6, picture.shape[:2], dtype=np.int8)
        grained: np.ndarray = np.clip(picture + grain[..., None], 0, 255)
        return grained.astype(np.uint8)

    def _coverage(self, thing: Thing) -> np.ndarray:
        """Fraction of each pixel that the shape covers, 0 to 1: its signed distance, blurred over
        one pixel."""
        x, y = (
            (self._x - thing.center[0]) / thing.radius,
            (self._y - thing.center[1]) / thing.radius,
        )
        cosine, sine = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
        x, y = cosine * x + sine * y, cosine * y - sine * x
        distance = _DISTANCES[thing.shape](x, y)
        coverage: np.ndarray = np.clip(0.5 - distance * (thing.radius * self.size_px), 0, 1)
        return coverage

    def _with_other(self, scene: Scene, draw: np.random.Generator) -> Scene:
        thing = scene.thing
        # Only sides on which there is room for a small shape.
        steps = {
            "to the left of": (1, 0),
            "to the right of": (-1, 0),
            "above": (0, 1),
            "below": (0, -1),
        }
        gap, radius = thing.radius + 0.13, 0.09
        room = []
        for relation, (right, down) in steps.items():
            x, y = thing.center[0] + right * gap, thing.center[1] + down * gap
            if radius <= x <= 1 - radius and radius <= y <= 1 - radius:
                room.append((relation, (x, y)))
        if not room:
            return scene
        relation, center = room[draw.integers(len(room))]
        colors = [color for color in COLORS if color != thing.color]
        color, shape = colors[draw.integers(len(colors))], SHAPES[draw.integers(len(SHAPES))]
        while self.combinations == "seen" and CLASSES.index(f"{color} {shape}") in UNSEEN:
            color, shape = colors[draw.integers(len(colors))], SHAPES[draw.integers(len(SHAPES))]
        other = Thing(color, shape, "small", "", center, radius, float(draw.uniform(-0.15, 0.15)))
        return scene._replace(other=other, relation=relation)

    def _kind(self, index: int) -> int:
        # Kinds of many positions at once cost hardly more than one; two bytes each are stored.
        block, where = divmod(index, _BLOCK)
        if block not in self._blocks:
            self._blocks[block] = self._kinds(
                np.arange(block * _BLOCK, (block + 1) * _BLOCK)
            ).astype(np.int16)
        return int(self._blocks[block][where])

    def _kinds(self, indices: np.ndarray) -> np.ndarray:
        """Kind of picture at each position: the split's kinds in a shuffled order, again and again
        in other orders."""
        num_kinds = len(self._split_kinds)
        passes, within = np.divmod(indices, num_kinds)
        kinds: np.ndarray = self._split_kinds[
            permuted(within, num_kinds, hashed(self.seed, passes, 17))
        ]
        return kinds

    def _generator(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.SFC64((self.seed, list(_SPLITS).index(self.split), index, purpose))
        )


def _of_colors(kinds: np.ndarray, colors: Sequence[str]) -> np.ndarray:
    """The kinds of picture in these colors."""
    for color in colors:
        if color not in COLORS:
            raise DataError(
                f"data.colors: no color '{color}'.{did_you_mean(color, COLORS)} Colors:"
                f" {', '.join(COLORS)}."
            )
    if not colors:
        raise DataError("data.colors is empty. Name a color, or leave it out.")
    numbers = [list(COLORS).index(color) for color in colors]
    found = kinds[np.isin(kinds % len(COLORS), numbers)]
    if not len(found):
        raise DataError(f"data.colors: no picture of these combinations is {' or '.join(colors)}.")
    return found


def _where(position: str) -> str:
    return "in the centre" if position == "centre" else f"at the {position}"


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inside: np.ndarray = np.sqrt(x * x + y * y) - np.float32(0.95)
    return inside


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inside: np.ndarray = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.82)
    return inside


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Tip at the top (y = -1.05), base at y = 0.75; the sides fall at 60 degrees.
    sides = np.abs(x) * np.float32(0.866) - (y + np.float32(1.05)) * np.float32(0.5)
    inside: np.ndarray = np.maximum(sides, y - np.float32(0.75))
    return inside


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(
        np.maximum(x - np.float32(0.95), y - np.float32(0.3)),
        np.maximum(y - np.float32(0.95), x - np.float32(0.3)),
    )


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inside: np.ndarray = np.abs(np.sqrt(x * x + y * y) - np.float32(0.72)) - np.float32(0.22)
    return inside


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Five points: fold the angle into one tenth of the circle; there the outline is a straight line
    # from the tip to the notch.
    angle = np.arctan2(np.abs(x), -y)
    angle = np.abs(
        (angle + np.float32(np.pi / 5)) % np.float32(2 * np.pi / 5) - np.float32(np.pi / 5)
    )
    radius = np.sqrt(x * x + y * y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    tip, notch, turn = 1.05, 0.45, np.pi / 5
    edge = np.array([notch * np.cos(turn) - tip, notch * np.sin(turn)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    distance: np.ndarray = (along - np.float32(tip)) * np.float32(normal[0]) + across * np.float32(
        normal[1]
    )
    return distance


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "star": _star,
}
"""Signed distance to the outline, in radii, negative inside."""
