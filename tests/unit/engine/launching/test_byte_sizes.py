from __future__ import annotations

import pytest

from vlkd_cli.engine.launching.byte_sizes import parse_bytes
from vlkd_cli.errors import UserError


@pytest.mark.parametrize(
    "text", ["24GiB", "24 GB", "24g", "24", "24.0GiB", "24576MiB", "25165824KiB"]
)
def test_sizes_are_read_as_people_write_them(text: str) -> None:
    assert parse_bytes(text, "--memory") == 24 << 30


@pytest.mark.parametrize("text", ["", "0", "-3GiB", "24 bits", "GiB", "1e3", "24b"])
def test_what_is_not_a_size_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=f"--memory {text}: not a size of memory"):
        parse_bytes(text, "--memory")
