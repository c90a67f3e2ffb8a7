from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_cli.builders.places import locate, weights_file
from vlkd_cli.errors import WeightsError


def test_a_folder_means_the_weights_in_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no weights\. Put model\.safetensors"):
        weights_file(tmp_path, "model")
    (tmp_path / "first.pth").touch()
    assert weights_file(tmp_path, "model").name == "first.pth"
    (tmp_path / "second.pth").touch()
    with pytest.raises(WeightsError, match=r"several weights \(first\.pth, second\.pth\)"):
        weights_file(tmp_path, "model")
    (tmp_path / "model.safetensors").touch()
    assert weights_file(tmp_path, "model").name == "model.safetensors"


def test_a_missing_file_or_package_is_named() -> None:
    with pytest.raises(WeightsError, match=r"no file or folder 'nowhere/a\.pth'"):
        locate("nowhere/a.pth", "model")
    with pytest.raises(WeightsError, match="no installed package 'no_such_package'"):
        locate("package:no_such_package", "model")
    with pytest.raises(WeightsError, match="carries no model"):
        locate("package:ftfy", "model")
