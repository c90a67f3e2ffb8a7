from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_cli.cache_folder import cache_folder


def test_the_cache_folder_is_the_keys_then_the_environments_then_the_homes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "environment"))
    assert cache_folder("given") == Path("given")
    assert cache_folder() == tmp_path / "environment"
    monkeypatch.delenv("VLKD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vlkd"
