"""Small meshes on disk, in every format."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [(a, b, c) for w, x, y, z in QUADS for a, b, c in ((w, x, y), (w, y, z))]


def box(width: float = 1, height: float = 1, depth: float = 1) -> list[tuple[float, float, float]]:
    """The corners of a box."""
    return [(x * width, y * height, z * depth) for x, y, z in CORNERS]


def off_text(corners: Sequence[Sequence[float]], faces: Sequence[Sequence[int]] = QUADS) -> str:
    """An OFF file."""
    rows = [f"OFF\n{len(corners)} {len(faces)} 0", *(" ".join(map(str, c)) for c in corners)]
    return "\n".join([*rows, *(f"{len(f)} {' '.join(map(str, f))}" for f in faces)]) + "\n"


def obj_text(corners: Sequence[Sequence[float]], faces: Sequence[Sequence[int]] = QUADS) -> str:
    """An OBJ file."""
    rows = [f"v {' '.join(map(str, c))}" for c in corners]
    return "\n".join([*rows, *(f"f {' '.join(str(k + 1) for k in f)}" for f in faces)]) + "\n"


def ply_text(corners: Sequence[Sequence[float]], faces: Sequence[Sequence[int]] = QUADS) -> str:
    """A PLY file in ASCII."""
    head = [
        *("ply", "format ascii 1.0", f"element vertex {len(corners)}"),
        *(f"property float {axis}" for axis in "xyz"),
        *(f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"),
    ]
    rows = [" ".join(map(str, c)) for c in corners]
    return "\n".join([*head, *rows, *(f"{len(f)} {' '.join(map(str, f))}" for f in faces)]) + "\n"


def stl_bytes(corners: Sequence[Sequence[float]]) -> bytes:
    """A binary STL file."""
    body = b"".join(
        struct.pack("<12fH", 0, 0, 0, *(value for k in face for value in corners[k]), 0)
        for face in TRIANGLES
    )
    return bytes(80) + struct.pack("<I", len(TRIANGLES)) + body


def write_boxes(folder: Path, count: int = 4) -> None:
    """`count` meshes of each of two classes, tall and flat boxes, in class folders."""
    rng = np.random.default_rng(0)
    for name, sides in {"flat_slab": (2.0, 0.2, 2.0), "tall_post": (0.3, 3.0, 0.3)}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            corners = box(*(np.array(sides) * rng.uniform(0.8, 1.2, 3)).round(4).tolist())
            (folder / name / f"{number:02}.off").write_text(off_text(corners))


def small_tower(**keys: Any) -> dict[str, Any]:
    """A section of a small mesh tower."""
    config = {"centers": [8, 4], "neighbors": [4, 4], "radii": [0.8, 1.2], "width": 0.05}
    return {"builder": "pointnet", "points": 32, "config": config, **keys}
