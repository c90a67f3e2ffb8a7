"""Which way up a picture is: one rule for all decoders.

The EXIF tag counts, and where it is missing the one of XMP, as Pillow reads them. Only 2 to 8 turn
or mirror; any other value, and metadata that cannot be read, leave the pixels as they are.
"""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

UPRIGHT = 1
_TAG = 0x0112
_SWAPS = (5, 6, 7, 8)
_PNG_MARKS = (b"eXIf", b"exif", b"Orientation", b"XML:com.adobe.xmp")
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def orientation_of(image: Image.Image) -> int:
    """1 to 8, of a picture that Pillow has opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_TAG, UPRIGHT)
        return int(value) if value in range(2, 9) else UPRIGHT
    except Exception:  # damaged metadata raises whatever its parser stumbled over
        return UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Whether width and height are swapped."""
    return orientation in _SWAPS


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels `[h, w, 3]` the right way up."""
    if orientation == UPRIGHT:
        return pixels
    if orientation in _SWAPS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def jpeg_may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has a segment before its pixels that EXIF or XMP may be in; True also where
    its segments cannot be followed."""
    offset = 2
    while data[offset : offset + 1] == b"\xff" and offset + 4 <= len(data):
        marker = data[offset + 1]
        if marker == 0xFF:  # a fill byte
            offset += 1
        elif marker == _START_OF_SCAN:
            return False
        elif marker == _APP1:
            return True
        else:
            offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return True


def png_may_be_turned(data: bytes) -> bool:
    """Whether a PNG may hold an orientation. Pillow decodes all of its pixels to find out, since
    metadata may follow them."""
    return any(mark in data for mark in _PNG_MARKS)
