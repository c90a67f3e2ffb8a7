"""What `vlkd_cli.load` gives: the numbers of the suites, from any kind of target."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vlkd_cli
from tests.support.encoders import SENTENCES, write_encoder
from tests.unit.engine.recipes import tiny_recipe, train, write_recipe
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.export import export
from vlkd_cli.engine.launching.targets import target_of
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.errors import CheckpointError, UserError
from vlkd_cli.features.encode import embed_images, embed_texts, normalize

TEXTS = ["a red circle", "two", "a large green square on gray", "two", "a blue triangle"] * 15


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a run with averaged weights, its exported towers and its recipe."""
    folder = tmp_path_factory.mktemp("home")
    recipe = tiny_recipe(data={"num_samples": 16}, train={"epochs": 1, "ema": 0.5})
    train(folder, recipe, "runs/first")
    export(target=str(folder / "runs" / "first"), output=folder / "exported")
    return folder


@pytest.fixture(scope="module")
def pictures() -> Shapes:
    return Shapes(num_samples=70, size_px=32, split="val")


@pytest.fixture(scope="module")
def expected(home: Path, pictures: Shapes) -> dict[str, np.ndarray]:
    """What suites compute for the run."""
    checkpoint = Checkpoint.load(home / "runs" / "first" / "checkpoints" / "last.pt")
    recipe = checkpoint.read_recipe()
    towers = load_towers(recipe, home / "runs" / "first", checkpoint)
    subject = subject_of(recipe, towers, torch.device("cpu"))
    return {
        "image": normalize(embed_images(subject, pictures)).numpy(),
        "text": normalize(embed_texts(subject, TEXTS)).numpy(),
    }


@pytest.mark.parametrize("target", ["runs/first", "first", "runs/first/checkpoints/last.pt"])
def test_a_run_gives_the_features_of_its_suites_bit_for_bit(
    target, home, pictures, expected, monkeypatch, capsys
):
    monkeypatch.chdir(home)
    encoder = vlkd_cli.load(target)
    assert capsys.readouterr().err.endswith("last.pt, step 2, averaged weights\n")
    assert encoder.towers == ("image", "text")
    images = [pictures.image(index) for index in range(len(pictures))]
    np.testing.assert_array_equal(encoder.encode(images), expected["image"])
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected["text"])


def test_an_exported_folder_gives_the_vectors_of_its_run(home, pictures, expected, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(home / "exported", moved)
    images = [pictures.image(index) for index in range(len(pictures))]
    both = vlkd_cli.load(moved)
    np.testing.assert_allclose(both.encode(images), expected["image"], atol=1e-6)
    np.testing.assert_allclose(both.encode(TEXTS), expected["text"], atol=1e-6)
    alone = vlkd_cli.load(shutil.move(moved / "text", tmp_path / "renamed"))
    np.testing.assert_allclose(alone.encode(TEXTS), expected["text"], atol=1e-6)
    assert alone.modality == "text" and alone.width == expected["text"].shape[1]


def test_a_recipe_and_a_model_by_name_give_their_untrained_towers(home, tmp_path, capsys):
    recipe = write_recipe(tmp_path, tiny_recipe())
    assert vlkd_cli.load(recipe, "text").encode("a").shape == (1, 16)
    assert "tiny.yaml, not trained here" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]
    encoder = vlkd_cli.load("torchvision:mobilenet_v3_small:false")
    assert encoder.encode(np.zeros((40, 30, 3), dtype=np.uint8)).shape == (1, encoder.width)


def test_a_model_of_a_task_is_a_target():
    encoder = vlkd_cli.load("resnet-base", overrides=["towers.image.pretrained=false"])
    assert (encoder.modality, encoder.width) == ("image", 2048)
    # It has a head, whose random weights are the same each time.
    meshes = [vlkd_cli.load("pointnet-base") for _ in range(2)]
    assert (meshes[0].modality, meshes[0].width) == ("mesh", 512)
    assert meshes[0].digest == meshes[1].digest
    with pytest.raises(UserError, match="scores pairs of texts|does not have"):
        vlkd_cli.load("crossencoder-base-en")


def test_a_text_encoder_of_transformers_is_a_target_by_name_and_by_folder(tmp_path):
    folder = write_encoder(tmp_path / "bert")
    vectors = []
    for target in (str(folder), f"huggingface:{folder}"):
        encoder = vlkd_cli.load(target)
        vectors.append(encoder.encode(SENTENCES))
        assert encoder.towers == ("text",)
        assert set(target_of(target, [], tmp_path, False).recipe.towers) == {"text"}
    np.testing.assert_array_equal(*vectors)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("nowhere", "run folder, checkpoint or recipe"),
        ("opencilp:ViT-B-32", "no builder 'opencilp'. Did you mean 'openclip'?"),
        ("torchvision:resnet81:false", "resnet81"),
    ],
)
def test_a_target_that_is_not_there_ends_in_one_line(target, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        vlkd_cli.load(target)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_ends_in_one_line(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="x.pt is damaged or not a checkpoint"):
        vlkd_cli.load(tmp_path / "x.pt")


@pytest.fixture(scope="module")
def encoder(home: Path):
    return vlkd_cli.load(home / "runs" / "first")


def test_an_image_is_the_same_as_path_bytes_picture_and_array(encoder, pictures, tmp_path):
    picture = pictures.image(0)
    file = tmp_path / "a.png"
    picture.save(file)
    memory = io.BytesIO()
    picture.save(memory, "PNG")
    forms = [file, memory.getvalue(), picture, np.asarray(picture)]
    first = encoder.encode(picture)
    for form in forms:
        np.testing.assert_array_equal(encoder.encode(form), first)
        np.testing.assert_array_equal(encoder.encode([form]), first)
    np.testing.assert_array_equal(encoder.encode(str(file), "image"), first)
    np.testing.assert_array_equal(encoder["image"].encode([str(file)]), first)
    assert encoder.encode(np.stack([np.asarray(picture)] * 3)).shape == (3, first.shape[1])


def test_vectors_have_unit_length_unless_asked_otherwise(encoder):
    unit, raw = encoder.encode(TEXTS[:3]), encoder.encode(TEXTS[:3], normalize=False)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert not np.allclose(lengths, 1)
    np.testing.assert_allclose(raw / lengths, unit, rtol=1e-5)


def test_an_empty_list_of_items_gives_zero_rows(encoder):
    assert encoder.encode([], "text").shape == (0, 16)


def test_digest_and_width_are_those_of_the_chosen_tower(encoder, home):
    assert encoder["text"].width == 16 and encoder["text"].name == "text"
    assert len({encoder["text"].digest, encoder["image"].digest}) == 2
    again = vlkd_cli.load(home / "runs" / "first", "text")
    assert again.digest == encoder["text"].digest


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda e: e.width, "there are several towers: image, text. Choose one"),
        (lambda e: e["txt"], "there is no tower 'txt'. Did you mean 'text'?"),
        (lambda e: e.encode([1.5], "text"), "item 0 is a float; tower 'text' takes strings"),
        (lambda e: e.encode(["a", b"b"]), "item 1 is a bytes; tower 'text' takes strings"),
        (lambda e: e.encode([None], "image"), "item 0 is a NoneType; tower 'image' takes paths"),
        (lambda e: e.encode(np.zeros((4, 4, 3))), r"array of float64 \[4, 4, 3\]"),
        (lambda e: e.encode(Path("gone.png")), "gone.png: no such file"),
        (lambda e: e.encode(b"no picture"), "item 0: it is not an image"),
        (lambda e: e.encode("a", batch_size=0), "batch_size is 0; it must be at least 1"),
        (lambda e: e.encode(__file__), "is a text and the name of a file"),
    ],
)
def test_a_mistake_ends_in_one_line(call, line, encoder):
    with pytest.raises(UserError, match=line) as error:
        call(encoder)
    assert "\n" not in str(error.value)


def test_importing_the_package_and_naming_load_need_no_torch():
    script = (
        "import sys, vlkd_cli; vlkd_cli.load; assert 'load' in dir(vlkd_cli)\n"
        "assert not {'torch', 'numpy', 'PIL', 'yaml', 'pydantic'} & set(sys.modules)\n"
        "try: vlkd_cli.nothing\n"
        "except AttributeError as error: assert \"no attribute 'nothing'\" in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_example_of_the_docs_finds_the_nearest_image(home, encoder, pictures, tmp_path):
    from docs.snippets.encode import nearest_image

    for index in range(5):
        pictures.image(index).save(tmp_path / f"{index}.png")
    files = [tmp_path / f"{index}.png" for index in range(5)]
    scores = encoder.encode(files) @ encoder.encode("a red circle")[0]
    found = nearest_image(str(home / "runs" / "first"), "a red circle", tmp_path)
    assert found == files[int(scores.argmax())]
