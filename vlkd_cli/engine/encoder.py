"""Encoders for Python programs: items in, vectors out, as the suites have them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.modality import modality_of_file
from vlkd_cli.distributed.runtime import pick_device
from vlkd_cli.engine.given import GIVEN, is_points
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.engine.target import Target, open_target
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.evaluation.run import with_tower
from vlkd_cli.features.encode import embed_samples, embed_texts
from vlkd_cli.features.encode import normalize as l2_normalize
from vlkd_cli.features.subject import OpenTables, Subject
from vlkd_cli.preprocessing import MeshInput
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.types import MODALITY_NAMES, ModalityName, Precision
from vlkd_cli.towers.outputs import HEAD

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower


class Encoder:
    """The towers of a target, of which one may be chosen.

    Args:
        subject: the towers, their device and precision.
        name: of the chosen tower; None: each call of `encode` takes the one that fits its items.
        others: encoders of other outputs by tower and output, made when they are asked for.
    """

    def __init__(
        self,
        subject: Subject,
        name: str | None = None,
        others: dict[tuple[str, str], Encoder] | None = None,
    ) -> None:
        self._subject, self._name = subject, name
        self._others = {} if others is None else others

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of all towers."""
        return tuple(self._subject.towers)

    def __getitem__(self, tower: str) -> Encoder:
        """The encoder of one tower, by its name or as `image` or `text`.

        Raises:
            UserError: there is no such tower.
        """
        return Encoder(self._subject, self._named(tower), self._others)

    def __repr__(self) -> str:
        return f"Encoder(towers={list(self.towers)}, tower={self._name!r})"

    @property
    def name(self) -> str:
        """Of the chosen tower."""
        return self._only()

    @property
    def width(self) -> int:
        """Values of a vector."""
        return self._tower.width // (self.positions or 1)

    @property
    def positions(self) -> int | None:
        """Vectors of an item, one for each of its positions; None: a single one."""
        return self._tower.positions

    @property
    def subject(self) -> Subject:
        """What suites would run, with the chosen tower as that of its modality."""
        return with_tower(self._subject, self._only())

    def at_output(self, output: str) -> Encoder:
        """The encoder of the chosen tower with another of its outputs: `backbone`, `tokens` or a
        head.

        Raises:
            UserError: there is no such output, or it has a varying number of positions.
        """
        name = self._only()
        if output == HEAD:
            return self[name]
        if (name, output) not in self._others:
            towers = {**self._subject.towers, name: self._tower.at_output(output)}
            # Tables know towers by their identity.
            subject = replace(self._subject, towers=towers, tables=OpenTables())
            self._others[name, output] = Encoder(subject, name)
        return self._others[name, output]

    @property
    def modality(self) -> ModalityName:
        """What the chosen tower encodes."""
        return self._tower.modality

    @property
    def digest(self) -> str:
        """sha256 over all that determines the vectors: weights, heads, preprocessing."""
        return self._subject.weights_digest(self._tower)

    def encode(
        self,
        items: Any,
        tower: str | None = None,
        *,
        output: str = HEAD,
        batch_size: int | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """Vectors `[N, width]` of N items, or `[1, width]` of a single one; `[N, positions, width]`
        of an output with positions.

        On a CPU they equal the features that suites compute, bit for bit, for the same items in
        the same order.

        Args:
            items: strings for a text tower; for an image tower paths, encoded bytes, PIL images or
                `[H, W, 3]` (or `[H, W]`) uint8 arrays; for a mesh tower paths, or arrays of points
                `[P, 3]`, or `[P, 6]` with normals, and `[N, P, 3 or 6]` for several.
            tower: by name, or `image`, `text` or `mesh`; by default the chosen one, else the one
                that fits the first item, where a string is a text if there is a text tower.
            output: `backbone`, `tokens` or a head of the tower.
            batch_size: by default that of the suites: the recipe's, at least 64.
            normalize: L2-normalize the vectors.

        Raises:
            UserError: an item is of another kind, or cannot be read, or no tower fits.
        """
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
        reads_points = any(
            isinstance(own.input, MeshInput) for own in self._subject.towers.values()
        )
        listed = [items] if _is_single(items, reads_points=reads_points) else list(items)
        name = self._chosen(tower, listed)
        if output != HEAD:
            other = self[name].at_output(output)
            return other.encode(listed, batch_size=batch_size, normalize=normalize)
        chosen = self._subject.towers[name]
        known = self._subject.tables
        subject = replace(
            with_tower(self._subject, name),
            batch_size=batch_size or self._subject.batch_size,
            tables=OpenTables(digests=known.digests, weights=known.weights),
        )
        positions = () if chosen.positions is None else (chosen.positions,)
        shape = (*positions, chosen.width // (chosen.positions or 1))
        if not listed:
            return np.zeros((0, *shape), dtype=np.float32)
        if not FACTS[chosen.modality].has_views:
            features = embed_texts(subject, [_text(item, n, name) for n, item in enumerate(listed)])
        else:
            features = embed_samples(subject, chosen.modality, GIVEN[chosen.modality](listed, name))
        features = features.unflatten(1, shape)
        vectors: NDArray[np.float32] = (l2_normalize(features) if normalize else features).numpy()
        return vectors

    @property
    def _tower(self) -> Tower:
        return self._subject.towers[self._only()]

    def _only(self) -> str:
        if self._name is not None:
            return self._name
        if len(self.towers) == 1:
            return self.towers[0]
        raise UserError(
            f"there are several towers: {', '.join(self.towers)}. Choose one, e.g."
            f" encoder['{self.towers[0]}']."
        )

    def _named(self, tower: str) -> str:
        towers = self._subject.towers
        if tower in towers:
            return tower
        for modality in MODALITY_NAMES:
            usual = self._subject.tower(modality)
            if tower == modality and usual is not None:
                return next(name for name, own in towers.items() if own is usual)
        words = [*towers, *{own.modality for own in towers.values()}]
        raise UserError(
            f"there is no tower '{tower}'.{did_you_mean(tower, words)} Towers: {', '.join(towers)}."
        )

    def _chosen(self, tower: str | None, items: Sequence[Any]) -> str:
        """The name of the tower for these items."""
        if tower is not None:
            return self._named(tower)
        if self._name is not None or len(self.towers) == 1 or not items:
            return self._only()
        first = items[0]
        if isinstance(first, str) and self._subject.text is not None:
            if self._subject.image is not None and os.path.isfile(first):
                raise UserError(
                    f"'{first}' is a text and the name of a file. Choose with tower=, or"
                    " give a pathlib.Path."
                )
            return self._named("text")
        return self._named(_modality_of(first))


def _is_single(items: object, *, reads_points: bool) -> bool:
    """Whether a caller gave one item instead of several; an array `[N, P, 3]` is several clouds
    where there is a tower for them."""
    if isinstance(items, np.ndarray):
        is_clouds = reads_points and items.ndim == 3 and len(items) > 0 and is_points(items[0])
        return items.ndim in (2, 3) and items.dtype != object and not is_clouds
    return isinstance(items, (str, bytes, os.PathLike, Image.Image))


def _modality_of(item: object) -> ModalityName:
    """Of an item that is not a text."""
    if isinstance(item, np.ndarray):
        return "mesh" if is_points(item) else "image"
    if isinstance(item, (str, os.PathLike)):
        return modality_of_file(str(os.fspath(item))) or "image"
    return "image"


def _text(item: object, number: int, tower: str) -> str:
    if isinstance(item, str):
        return item
    raise DataError(f"item {number} is a {type(item).__name__}; tower '{tower}' takes strings.")


def load_encoder(
    target: str | None,
    tower: str | None = None,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision | None = None,
    overrides: Sequence[str] = (),
    runs: Path = Path("runs"),
    trust: bool = False,
) -> Encoder:
    """See `api.load`; without a target, the newest run."""
    opened = open_target(target, overrides, runs=runs, trust=trust)
    console.note(f"Encoding with {opened.described}")
    encoder = Encoder(subject_for(opened, device, precision))
    return encoder if tower is None else encoder[tower]


def subject_for(
    opened: Target,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision | None = None,
) -> Subject:
    """The towers of a target on a device, as suites would run them."""
    chosen = pick_device(device)
    if device == "cuda" and chosen.type != "cuda":
        raise UserError("device: there is no GPU on this machine. Use `cpu` or `auto`.")
    towers: Mapping[str, Tower] = opened.towers
    for each in towers.values():
        each.to(chosen)
    subject = subject_of(opened.recipe, towers, chosen)
    subject.model = opened.source
    if precision is not None:
        subject.precision = precision
    return subject
