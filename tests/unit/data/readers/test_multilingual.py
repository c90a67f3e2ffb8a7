"""Captions in many languages: XTD and Crossmodal-3600."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.data_sets import multilingual_data, write_photos
from vlkd_cli.data.readers.multilingual import Multilingual, languages_of
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.known_sets import is_multilingual


def xtd(folder: Path) -> Path:
    names = write_photos(folder / "images", 3)
    (folder / "test_image_names.txt").write_text("\n".join(names) + "\n")
    for language, word in (("en", "picture"), ("jp", "写真")):
        lines = [f"{word} {number}" for number in range(3)]
        (folder / f"test_1kcaptions_{language}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_xtd_has_a_line_for_each_image(tmp_path: Path) -> None:
    reader = Multilingual(path=str(xtd(tmp_path)), language="jp")
    assert reader.languages == ["en", "jp"]
    assert list(reader.captions(2)) == ["写真 2"]
    assert reader.name(2).endswith("images/photo02.jpg")


def test_xtd_is_read_from_its_repository(tmp_path: Path) -> None:
    """German and French lie in MIC, Japanese in STAIR, all others and the images' names in
    XTD10."""
    xtd(tmp_path)
    for folder, names in (
        ("XTD10", ("test_image_names.txt", "test_1kcaptions_en.txt")),
        ("STAIR", ("test_1kcaptions_jp.txt",)),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / name).rename(tmp_path / folder / name)
    (tmp_path / "MIC").mkdir()
    (tmp_path / "MIC" / "test_1kcaptions_de.txt").write_text("Bild 0\nBild 1\nBild 2\n")
    assert languages_of(tmp_path) == ["de", "en", "jp"]
    for language, caption in (("de", "Bild 1"), ("en", "picture 1"), ("jp", "写真 1")):
        reader = Multilingual(path=str(tmp_path), language=language)
        assert list(reader.captions(1)) == [caption] and len(reader) == 3
    assert is_multilingual(tmp_path) and not is_multilingual(tmp_path / "MIC")


def test_crossmodal_has_several_captions_in_each_language(tmp_path: Path) -> None:
    path = multilingual_data(tmp_path)["path"]
    german, english = Multilingual(path=path, language="de"), Multilingual(path=path)
    assert languages_of(tmp_path) == ["de", "en"]
    assert list(german.captions(1)) == ["Bild 1", "noch einmal Bild 1"]
    assert list(english.captions(1)) == ["picture 1"]
    # The images are the same data, the captions are not.
    assert german.image_fingerprint() == english.image_fingerprint()
    assert german.fingerprint() != english.fingerprint()


def test_what_is_missing_ends_in_one_line(tmp_path: Path) -> None:
    folder = xtd(tmp_path / "xtd")
    with pytest.raises(DataError, match="has no captions in it. Did you mean 'jp'.*It has: en, jp"):
        Multilingual(path=str(folder), language="jpn")
    (folder / "test_1kcaptions_en.txt").write_text("a\n\nb\n")
    with pytest.raises(DataError, match="test_1kcaptions_en.txt:2: is blank"):
        Multilingual(path=str(folder))
    (folder / "test_1kcaptions_en.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="has 2 lines, and test_image_names.txt names 3 images"):
        Multilingual(path=str(folder))
    (folder / "images" / "photo01.jpg").unlink()
    with pytest.raises(DataError, match="photo01.jpg: this image is missing"):
        Multilingual(path=str(folder), language="jp")
    with pytest.raises(DataError, match="no such folder"):
        Multilingual(path=str(folder), language="jp", image_root="nowhere")
    with pytest.raises(DataError, match="has neither test_image_names.txt"):
        Multilingual(path=str(tmp_path))
    other = multilingual_data(tmp_path / "crossmodal")["path"]
    file = Path(other) / "captions.jsonl"
    whole = file.read_text()
    for content, message in (
        (
            whole.replace('"de": {"caption": ["Bild 1"', '"xx": {"caption": ["Bild 1"'),
            "no captions",
        ),
        (whole.replace('"image/key": "photo01"', '"image/key": 1'), ":2: has no 'image/key'"),
        (whole.replace('"Bild 1"', "1"), "is a number, not text"),
        (whole + "\n[", ":5: is not valid JSON"),
        ("\n", "holds no images"),
        ("[]", ":1: is a list"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            Multilingual(path=other, language="de")
