"""Every format gives the same surface; what is not one is one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.meshes import box, obj_text, off_text, ply_text, stl_bytes
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.meshes.files import find_meshes, holds_meshes, parse_mesh, read_bytes

CORNERS = box(1, 2, 0.5)
TRIANGLE = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("off", off_text(CORNERS).encode()),
        ("obj", obj_text(CORNERS).encode()),
        ("ply", ply_text(CORNERS).encode()),
        ("stl", stl_bytes(CORNERS)),
    ],
)
def test_every_format_gives_the_triangles_of_the_surface(suffix, content):
    vertices, faces = parse_mesh(content, suffix)
    assert len(faces) == 12
    corners = vertices[faces]
    sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.linalg.norm(sides, axis=1).sum() / 2 == pytest.approx(2 * (2 + 0.5 + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("OFF\n", "OFF"),  # ModelNet's glued header
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("OFF\n", "# made by hand\nOFF # header\n\n# counts\n"),
        lambda text: text.replace("OFF", "off"),
        lambda text: text.replace("OFF", "COFF").replace("0 0 0\n", "0 0 0 255 0 0 1\n", 1),
    ],
)
def test_variants_of_off_are_read_alike(change):
    plain, changed = (
        parse_mesh(text.encode(), "off") for text in (off_text(CORNERS), change(off_text(CORNERS)))
    )
    assert np.array_equal(plain.vertices, changed.vertices)
    assert np.array_equal(plain.faces, changed.faces)


@pytest.mark.parametrize("suffix", ["obj", "off"])
def test_byte_order_marks_and_comments_behind_numbers_are_passed_over(suffix):
    text = {"obj": obj_text, "off": off_text}[suffix](CORNERS)
    marked = "\ufeff" + text.replace("0 0 0.5\n", "0 0 0.5 # the corner\n", 1)
    plain, changed = parse_mesh(text.encode(), suffix), parse_mesh(marked.encode(), suffix)
    assert "# the corner" in marked and np.array_equal(plain.vertices, changed.vertices)
    assert np.array_equal(plain.faces, changed.faces)


def test_the_parts_of_a_scene_are_joined_and_no_other_file_is_opened(tmp_path, monkeypatch):
    text = "mtllib other.mtl\no one\nusemtl a\n" + obj_text(TRIANGLE, [(0, 1, 2)])
    text += "o two\nusemtl b\nv 0 0 5\nv 1 0 5\nv 0 1 5\nf 4 5 6\n"
    monkeypatch.chdir(tmp_path)
    os.mkfifo("other.mtl")  # opening it would wait for ever
    assert len(parse_mesh(text.encode(), "obj").faces) == 2


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("obj", obj_text(TRIANGLE, []), "has no faces"),
        ("off", off_text(TRIANGLE, []), "has no faces"),
        ("obj", "no mesh at all", "has no faces"),
        ("off", "solid", "cannot be read as .off: it does not begin with OFF"),
        ("off", "OFF\n", "cannot be read as .off: the counts"),
        ("off", "OFF\n3 x 0\n", "cannot be read as .off: invalid literal"),
        ("off", "OFF\n-3 1 0\n", "it declares -3 vertices"),
        ("off", "OFF\n900000000000 6 0\n0 0 0\n", "declares 900000000000 vertices and 6 faces"),
        ("off", off_text(TRIANGLE, [(0, 1)]), "a face of 2 vertices"),
        ("off", off_text(TRIANGLE, [(0, 1, 9)]), "has a face of a vertex that is not there"),
        ("off", off_text(TRIANGLE, [(0, 1, -1)]), "has a face of a vertex that is not there"),
        ("obj", obj_text(TRIANGLE, [(0, 1, 8)]), "cannot be read as .obj"),
        ("off", off_text([*TRIANGLE, (0, "nan", 0)], [(0, 1, 2)]), "not finite"),
        ("ply", ply_text([(0, 0, 0), (1, "inf", 0), (0, 1, 0)], [(0, 1, 2)]), "not finite"),
        ("ply", ply_text(TRIANGLE, [(0, 1, 2)]).replace("face 1", "face 900"), "is cut off: it"),
        ("ply", ply_text(TRIANGLE, [(0, 1, 2)])[:60], "cannot be read as .ply"),
        ("stl", "\0" * 80 + "\xff" * 4, "has no faces"),
    ],
)
def test_what_is_not_a_surface_is_broken_with_the_reason(suffix, content, message):
    with pytest.raises(Broken) as caught:
        parse_mesh(content.encode("latin-1"), suffix)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_broken(tmp_path: Path):
    (tmp_path / "empty.obj").write_bytes(b" \n")
    (tmp_path / "model.glb").write_bytes(b"glTF")
    with pytest.raises(Broken, match="is empty"):
        read_bytes(str(tmp_path / "empty.obj"))
    with pytest.raises(Broken, match="not a mesh file; formats: obj, off, ply, stl"):
        read_bytes(str(tmp_path / "model.glb"))
    with pytest.raises(Broken, match="No such file"):
        read_bytes(str(tmp_path / "nothing.off"))
    with pytest.raises(Broken, match="null"):
        read_bytes("a\0b.off")


def test_meshes_are_found_in_the_order_of_their_names(tmp_path: Path):
    assert not holds_meshes(tmp_path)
    for name in ("b/2.OFF", "a/9.obj", "a/texture.png", ".hidden/1.off"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(off_text(CORNERS))
    assert find_meshes(tmp_path) == ["a/9.obj", "b/2.OFF"]
    assert holds_meshes(tmp_path)
