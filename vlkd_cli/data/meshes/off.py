"""Triangles of an OFF file. Its polygons are cut in their order, each as a fan, so that the order
of the triangles is the file's and not that of a library's version."""

from __future__ import annotations

import itertools
import re

import numpy as np
from numpy.typing import NDArray

_HEADER = re.compile(r"\s*(?:ST)?C?N?OFF(.*)", re.IGNORECASE)


def parse_off(content: bytes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices `[V, 3]` and triangles `[F, 3]`; colors, normals and comments are passed over.

    ModelNet's files, in which the counts follow OFF without a space, are read too.

    Raises:
        ValueError: the content is not an OFF file, or ends early.
    """
    lines = [line.partition("#")[0] for line in content.decode("latin-1").splitlines()]
    lines = [line for line in lines if line.strip()]
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        raise ValueError("it does not begin with OFF")
    rows = [row for row in (header[1].split(), *(line.split() for line in lines[1:])) if row]
    if not rows or len(rows[0]) < 2:
        raise ValueError("the counts of vertices and faces are missing")
    num_vertices, num_faces = (int(count) for count in rows[0][:2])
    body = rows[1:]
    if min(num_vertices, num_faces) < 0 or num_vertices + num_faces > len(body):
        raise ValueError(
            f"it declares {num_vertices} vertices and {num_faces} faces, and {len(body)} lines"
            " follow"
        )
    vertices = np.array([row[:3] for row in body[:num_vertices]], dtype=np.float64)
    triangles: list[tuple[int, int, int]] = []
    for row in body[num_vertices : num_vertices + num_faces]:
        size = int(row[0])
        polygon = [int(corner) for corner in row[1 : size + 1]]
        if len(polygon) < size or size < 3:
            raise ValueError(f"a face of {size} vertices lists {len(polygon)}")
        triangles += [
            (polygon[0], second, third) for second, third in itertools.pairwise(polygon[1:])
        ]
    return vertices.reshape(-1, 3), np.array(triangles, dtype=np.int64).reshape(-1, 3)
