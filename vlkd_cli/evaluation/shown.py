"""What an evaluation writes for the report page in addition to its numbers: an answer per item,
the pictures worth looking at, and a map of the features.

Per item (`KEY.items.npz`): how each row was answered, in row order, without labels or names, so
that two models can be compared on the same items. For the page (`KEY.map.npz`): coordinates of at
most 500 items and the lists that the page shows, pictures by path; one that has no file (rendered,
in an archive) is stored as a thumbnail.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.readers.reader import Reader

MAP_ITEMS = 500
NUM_QUERIES = 4
NUM_FOUND = 5
NUM_CONFUSIONS = 4
THUMBNAIL_PX = 144
WEBP_QUALITY = 62

Arrays = dict[str, np.ndarray]


class Shown(NamedTuple):
    """What the report page shows of one result."""

    lists: dict[str, Any]
    """Plain JSON; pictures in it are row numbers."""
    arrays: Arrays
    """The map; see `feature_map`."""
    pictures: dict[int, str | bytes]
    """Absolute path of a picture, or its thumbnail as WebP, by row."""

    def to_arrays(self) -> Arrays:
        """All of it as arrays without objects: `lists` is JSON text, in which `pictures` maps rows
        to paths or to the bounds of their bytes in `thumbnails`."""
        pictures: dict[str, object] = {}
        stored = bytearray()
        for row, picture in self.pictures.items():
            if isinstance(picture, str):
                pictures[str(row)] = picture
            else:
                pictures[str(row)] = [len(stored), len(stored) + len(picture)]
                stored += picture
        text = json.dumps({**self.lists, "pictures": pictures})
        return {
            **self.arrays,
            "lists": np.array(text),
            "thumbnails": np.frombuffer(bytes(stored), dtype=np.uint8),
        }


def classification_items(scores: Tensor, labels: Tensor) -> Arrays:
    """The answer to each row: `predicted` class, `margin` of the right class over the best other
    one (positive where right), and `right` as packed bits.

    Args:
        scores: `[N, C]`.
        labels: `[N]` int64.
    """
    predicted = scores.argmax(1)
    own = scores.gather(1, labels.view(-1, 1)).flatten()
    others = scores.scatter(1, labels.view(-1, 1), -torch.inf).amax(1)
    small = scores.shape[1] <= 1 << 16
    return {
        "predicted": predicted.numpy().astype(np.uint16 if small else np.int32),
        "margin": (own - others).numpy().astype(np.float16),
        "right": np.packbits((predicted == labels).numpy()),
    }


def retrieval_items(image_ranks: Tensor, caption_ranks: Tensor, counts: np.ndarray) -> Arrays:
    """The 1-based rank of each image's best caption and of each caption's image, and the number of
    captions of each image."""
    return {
        "image_rank": image_ranks.numpy().astype(np.int32),
        "caption_rank": caption_ranks.numpy().astype(np.int32),
        "captions": np.asarray(counts, dtype=np.int32),
    }


def retrieval_shown(
    images: Tensor,
    texts: Tensor,
    owner: Tensor,
    caption_ranks: Tensor,
    captions: list[str],
    reader: Reader,
) -> Shown:
    """The captions whose image was found last and those that found it most surely, each with the
    five best images; and the map of images with their first captions.

    Args:
        images: `[N, D]`, unit length.
        texts: `[M, D]`, unit length.
        owner: `[M]` int64, the image of each caption.
        caption_ranks: `[M]` int64, 1-based.
    """
    # In blocks: a copy of the own image of every caption would be as large as the features.
    blocks = zip(texts.split(4096), owner.split(4096), strict=True)
    cosine = torch.cat([(block * images[own]).sum(1) for block, own in blocks])
    by_rank = torch.argsort(caption_ranks, descending=True, stable=True).tolist()
    misses = _distinct((q for q in by_rank if caption_ranks[q] > 1), owner)
    by_cosine = torch.argsort(cosine, descending=True, stable=True).tolist()
    hits = _distinct((q for q in by_cosine if caption_ranks[q] == 1), owner)

    def row(query: int) -> dict[str, Any]:
        scores = images @ texts[query]
        best = torch.argsort(scores, descending=True, stable=True)[:NUM_FOUND].tolist()
        return {
            "caption": captions[query],
            "image": int(owner[query]),
            "rank": int(caption_ranks[query]),
            "cosine": round(float(cosine[query]), 4),
            "found": [[index, round(float(scores[index]), 4)] for index in best],
        }

    lists: dict[str, Any] = {
        "misses": [row(query) for query in misses],
        "hits": [row(query) for query in hits],
    }
    wanted = [n for rows in lists.values() for r in rows for n in (r["image"], *dict(r["found"]))]
    first = torch.from_numpy(np.unique(owner.numpy(), return_index=True)[1])
    chosen = _spread(len(first))
    arrays = feature_map(images[chosen], texts[first[chosen]])
    lists["map_captions"] = [captions[int(first[n])] for n in chosen]
    return Shown(lists, arrays, pictures_of(reader, wanted))


def classification_shown(
    scores: Tensor, labels: Tensor, features: Tensor, names: list[str], reader: Reader
) -> Shown:
    """The four largest confusions with the pictures most surely taken for the wrong class, and the
    map of the images by class."""
    predicted = scores.argmax(1)
    wrong = predicted != labels
    pairs, sizes = torch.unique(labels[wrong] * len(names) + predicted[wrong], return_counts=True)
    confusions: list[dict[str, Any]] = []
    for pair in torch.argsort(sizes, descending=True, stable=True)[:NUM_CONFUSIONS]:
        right, taken = divmod(int(pairs[pair]), len(names))
        rows = ((labels == right) & (predicted == taken)).nonzero().flatten()
        order = torch.argsort(scores[rows, taken], descending=True, stable=True)[:NUM_FOUND]
        confusions.append(
            {
                "class": names[right],
                "taken_for": names[taken],
                "images": int(sizes[pair]),
                "of": int((labels == right).sum()),
                "found": [
                    [n, round(float(scores[n, taken]), 4), round(float(scores[n, right]), 4)]
                    for n in rows[order].tolist()
                ],
            }
        )
    chosen = _spread(len(labels))
    lists: dict[str, Any] = {"confusions": confusions}
    lists["map_captions"] = [names[int(labels[n])] for n in chosen]
    wanted = [found[0] for confusion in confusions for found in confusion["found"]]
    return Shown(lists, feature_map(features[chosen]), pictures_of(reader, wanted))


def feature_map(*modalities: Tensor) -> Arrays:
    """Two principal axes of unit features, each modality centered by itself (which takes the gap
    between modalities out).

    Returns:
        `map`: `[M, N, 2]` float32 for M modalities of N items; `map_variance`: the fraction of the
        variance that the two axes hold. Nothing where there are fewer than three items, or all are
        equal.
    """
    from sklearn.decomposition import PCA

    rows = len(modalities[0])
    centered = torch.cat([features - features.mean(0) for features in modalities]).double()
    if rows < 3 or centered.shape[1] < 2 or not torch.isfinite(centered).all():
        return {}
    if centered.square().mean() < 1e-12:
        return {}
    pca = PCA(2, svd_solver="full")
    points = pca.fit_transform(centered.numpy()).astype(np.float32)
    return {
        "map": points.reshape(len(modalities), rows, 2),
        "map_variance": np.float64(pca.explained_variance_ratio_.sum()),
    }


def pictures_of(reader: Reader, rows: list[int]) -> dict[int, str | bytes]:
    """Paths of pictures, thumbnails of those without a file; one that cannot be read is left
    out."""
    found: dict[int, str | bytes] = {}
    for row in dict.fromkeys(rows):
        try:
            image = reader.image(row)
            if isinstance(image, str):
                found[row] = os.path.abspath(image)
            elif image is not None:
                found[row] = thumbnail(decode(image))
        except (Broken, OSError):
            continue
    return found


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """A centered square of at most 144 pixels as WebP; small pictures are not enlarged."""
    from PIL import Image, ImageOps

    image = Image.fromarray(pixels)
    side = min(THUMBNAIL_PX, *image.size)
    out = io.BytesIO()
    ImageOps.fit(image, (side, side)).save(out, "WEBP", quality=WEBP_QUALITY)
    return out.getvalue()


def _distinct(queries: Any, owner: Tensor) -> list[int]:
    """The first four queries of different images."""
    chosen: dict[int, int] = {}
    for query in queries:
        chosen.setdefault(int(owner[query]), query)
        if len(chosen) == NUM_QUERIES:
            break
    return list(chosen.values())


def _spread(rows: int) -> list[int]:
    """At most 500 positions, evenly over all."""
    count = min(rows, MAP_ITEMS)
    return [n * rows // count for n in range(count)]
