"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from vlkd_cli.errors import UserError

_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}


def parse_bytes(text: str, option: str) -> int:
    """`24GiB`, `24 GB`, `24g` and `24` are 24 GiB, `512MiB` is half of one; in bytes.

    Raises:
        UserError: it is not a positive size; names the option.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(?:i?b)?)?", text.strip().lower())
    size = int(Decimal(found[1]) * (1 << _UNITS[found[2] or "g"])) if found else 0
    if size <= 0:
        raise UserError(f"{option} {text}: not a size of memory. Write it as 24GiB or 512MiB.")
    return size
