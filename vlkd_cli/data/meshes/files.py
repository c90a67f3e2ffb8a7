"""Which files are meshes, finding them in folders, and reading their triangles."""

from __future__ import annotations

import codecs
import io
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.files import find_files, suffix_of
from vlkd_cli.data.meshes.off import parse_off
from vlkd_cli.errors import MissingPackageError, UserError

SUFFIXES = ("obj", "off", "ply", "stl")
"""Suffixes of mesh files, without the dot."""
MOST_BYTES = 1 << 30
"""Larger files are not read: a mesh of that size has some ten million triangles."""

_COMMENT = re.compile(rb"#[^\r\n]*")
_PLY_FACES = re.compile(rb"^element face (\d+)", re.MULTILINE)


class Triangles(NamedTuple):
    """A surface: vertices `[V, 3]` float64, and the three vertices of each face `[F, 3]` int64."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]


def find_meshes(folder: Path) -> list[str]:
    """Paths of all meshes below a folder, relative to it, in an order that does not depend on the
    file system."""
    return sorted(path for path in find_files(folder) if suffix_of(path) in SUFFIXES)


def holds_meshes(folder: Path) -> bool:
    """Whether there is a mesh below a folder."""
    return any(suffix_of(path) in SUFFIXES for path in find_files(folder))


def read_bytes(path: str) -> bytes:
    """The content of a mesh file.

    Raises:
        Broken: it is not a mesh by its name, or cannot be read.
    """
    if suffix_of(path) not in SUFFIXES:
        raise Broken(f"is not a mesh file; formats: {', '.join(SUFFIXES)}")
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Broken(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise Broken(f"is larger than {MOST_BYTES >> 30} GiB; simplify the mesh")
    if not content.strip():
        raise Broken("is empty")
    return content


def parse_mesh(content: bytes, suffix: str) -> Triangles:
    """The triangles of a file's content; scenes are joined and polygons cut into triangles. Other
    files that it names (materials, textures) are not opened.

    Args:
        suffix: what the file's name ends in, one of `SUFFIXES`.

    Raises:
        Broken: the content is damaged, or is not a surface.
        MissingPackageError: trimesh is not installed.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    parse = parse_off if suffix == "off" else partial(_parse_by_trimesh, suffix=suffix)
    try:
        vertices, faces = parse(content)
    except UserError:
        raise
    # Parsers stumble over damaged files in any way there is.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise Broken(f"cannot be read as .{suffix}: {reason}") from None
    if not len(faces):
        raise Broken("has no faces")
    if len(faces) < (declared := _declared_faces(content, suffix)):
        raise Broken(f"is cut off: it declares {declared} faces and has {len(faces)}")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise Broken("has a face of a vertex that is not there")
    if not np.isfinite(vertices).all():
        raise Broken("has vertices that are not finite numbers")
    return Triangles(vertices, faces)


def _parse_by_trimesh(
    content: bytes, *, suffix: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise MissingPackageError("meshes", "mesh") from error
    keys = {"skip_materials": True} if suffix == "obj" else {}
    if suffix == "obj":
        # A comment may follow the numbers of a line, which trimesh then cannot read.
        content = _COMMENT.sub(b"", content)
    found = trimesh.load(io.BytesIO(content), file_type=suffix, process=False, force="mesh", **keys)
    vertices = np.array(found.vertices, dtype=np.float64).reshape(-1, 3)
    return vertices, np.array(found.faces, dtype=np.int64).reshape(-1, 3)


def _declared_faces(content: bytes, suffix: str) -> int:
    """How many faces the header of a .ply file promises; 0 elsewhere. Cutting polygons into
    triangles only adds to them."""
    found = _PLY_FACES.search(content[:65536]) if suffix == "ply" else None
    return int(found[1][:18]) if found else 0
