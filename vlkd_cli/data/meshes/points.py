"""Points on the surface of a mesh: a function of the file's bytes alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.files import suffix_of
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.meshes.files import Triangles, parse_mesh, read_bytes

NUM_POINTS = 2048
"""Default number of points of a mesh."""
COLUMNS = 6
"""x, y, z, and the three of the normal."""


def cloud_of_file(path: str, points: int = NUM_POINTS) -> NDArray[np.float32]:
    """The point cloud of a mesh file, `[points, 6]`, see `cloud_of`.

    Raises:
        Broken: the file cannot be read, or is not a surface.
    """
    content = read_bytes(path)
    return cloud_of(content, suffix_of(path), points)


def cloud_of(content: bytes, suffix: str, points: int = NUM_POINTS) -> NDArray[np.float32]:
    """Points on the surface with the normals of their faces, `[points, 6]`, centered and scaled
    into the unit sphere.

    Raises:
        Broken: the content is damaged, or is not a surface with an area.
    """
    mesh = parse_mesh(content, suffix)
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    sampled, faces = sample_surface(mesh, seed, points)
    normals = _unit(_cross(mesh))[faces]
    return np.concatenate([normalize_points(sampled), normals], axis=1).astype(np.float32)


def cloud_of_points(points: np.ndarray) -> NDArray[np.float32]:
    """Points that a caller has at hand, centered and scaled into the unit sphere.

    Args:
        points: `[P, 3]`, or `[P, 6]` with normals.

    Raises:
        Broken: they are not of this shape, not finite, or all the same.
    """
    if points.ndim != 2 or points.shape[1] not in (3, COLUMNS) or not len(points):
        raise Broken(f"is an array {list(points.shape)}; points are [P, 3], or [P, 6] with normals")
    if not np.issubdtype(points.dtype, np.number) or not np.isfinite(points).all():
        raise Broken("has points that are not finite numbers")
    values = points.astype(np.float64)
    return np.concatenate([normalize_points(values[:, :3]), values[:, 3:]], axis=1).astype(
        np.float32
    )


def sample_surface(
    mesh: Triangles, seed: int, points: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points spread evenly over the area, `[points, 3]`, and the face of each, `[points]`.

    Source: Osada et al., Shape Distributions, ACM Transactions on Graphics 21(4), 2002, section
    4.1, with hashes instead of random numbers.

    Raises:
        Broken: the mesh has no area.
    """
    areas = np.linalg.norm(_cross(mesh), axis=1) / 2
    total = areas.sum()
    if not 0 < total < np.inf:
        raise Broken(f"has a surface of area {total:g}")
    index = np.arange(points)
    first, second, third = (
        (hashed(seed, index, axis) >> np.uint64(11)) * 2.0**-53 for axis in range(3)
    )
    shares = np.cumsum(areas / total)
    faces = np.searchsorted(shares, first, side="right")
    # Rounding may leave the sum of all below 1.
    faces = np.minimum(faces, np.flatnonzero(areas)[-1])
    corners = mesh.vertices[mesh.faces[faces]]
    root = np.sqrt(second)
    weights = np.stack([1 - root, root * (1 - third), root * third], axis=1)
    return (corners * weights[:, :, None]).sum(axis=1), faces


def normalize_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points minus their mean, over the largest norm.

    Raises:
        Broken: all of them are the same.
    """
    centered = points - points.mean(axis=0)
    largest = np.linalg.norm(centered, axis=1).max()
    if not 0 < largest < np.inf:
        raise Broken("all of its points are the same")
    scaled: NDArray[np.float64] = centered / largest
    return scaled


def _cross(mesh: Triangles) -> NDArray[np.float64]:
    """The normal of each face, as long as twice its area."""
    corners = mesh.vertices[mesh.faces]
    with np.errstate(over="ignore", invalid="ignore"):
        crossed: NDArray[np.float64] = np.cross(
            corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        )
    return crossed


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1)
    return unit
