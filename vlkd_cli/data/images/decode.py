"""From an image file to uint8 pixels.

Pixels are what `PIL.Image.open(file).convert("RGB")` gives, with three additions: the picture is
turned the right way up (`orientation.py`), 16-bit values are scaled to 8 bits rather than clipped,
and an animation is its first frame. Transparency is dropped, as `convert("RGB")` does.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.texts import read_file
from vlkd_cli.data.images.files import FORMATS
from vlkd_cli.data.images.orientation import (
    UPRIGHT,
    jpeg_may_be_turned,
    orientation_of,
    png_may_be_turned,
    swaps_sides,
    turned,
)

MAX_PIXELS = 178_956_970
"""Larger pictures are broken, whatever their format; the bound at which Pillow refuses one. It is
checked against the header, before any pixel is allocated."""
_TOO_LARGE = f"it has more than {MAX_PIXELS:,} pixels"


class Picture:
    """An image whose size is known and whose pixels are decoded when asked for, at once or scaled
    down by the JPEG decoder.

    Args:
        image: encoded bytes, a path, or a PIL image.
        salvage: what a file that is cut off lacks is gray; otherwise such a file is broken.

    Raises:
        Broken: the file is missing, is not an image, or has more than `MAX_PIXELS` pixels.
    """

    height: int
    width: int

    def __init__(self, image: bytes | str | Image.Image, *, salvage: bool = False) -> None:
        self._salvage = salvage
        self._data: bytes | None = None
        self._opened: Image.Image | None = None  # by PIL
        self._orientation = UPRIGHT
        if isinstance(image, Image.Image):
            self._opened = image
            self._take_size(image.height, image.width)
            self._load()
        else:
            self._data = _read(image) if isinstance(image, (str, os.PathLike)) else image
            self._open()
        if swaps_sides(self._orientation):
            self.height, self.width = self.width, self.height

    def _open(self) -> None:
        data = self._data
        if not data:
            raise Broken("the file is empty")
        if data[:3] == b"\xff\xd8\xff" and (header := _jpeg_header(data)) is not None:
            self._take_size(*header)
            if jpeg_may_be_turned(data):
                self._orientation = orientation_of(_opened(data))
            return
        self._opened = _opened(data)
        self._take_size(self._opened.height, self._opened.width)
        if self._opened.format == "TIFF":
            self._load()  # PIL turns it in loading, and some versions know its size only then
        elif self._opened.format != "PNG" or png_may_be_turned(data):
            with _loading(self._salvage):
                self._orientation = orientation_of(self._opened)

    def _load(self) -> None:
        assert self._opened is not None
        with _loading(self._salvage):
            self._opened.load()
        self.height, self.width = self._opened.height, self._opened.width
        if self._opened.info:  # a picture made in memory has no metadata
            self._orientation = orientation_of(self._opened)

    def _take_size(self, height: int, width: int) -> None:
        if height < 1 or width < 1:
            raise Broken("it has no pixels")
        if height * width > MAX_PIXELS:
            raise Broken(_TOO_LARGE)
        self.height, self.width = height, width

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Upright RGB pixels `[h, w, 3]` uint8.

        Args:
            shrink: 1, 2, 4 or 8: JPEG files may be decoded at 1/shrink of their size (rounded up).
                Others come at full size.

        Raises:
            Broken: the file is damaged.
        """
        stored = self._from_simplejpeg(shrink) if self._opened is None else None
        if stored is None:
            stored = self._from_pil(shrink)
        return turned(stored, self._orientation)

    def _from_simplejpeg(self, shrink: int) -> np.ndarray | None:
        """None: damage that libjpeg can live with is decided by PIL, so that what counts as broken
        does not depend on the decoder."""
        height, width = self.height, self.width
        if swaps_sides(self._orientation):
            height, width = width, height
        smallest = (-(-height // shrink), -(-width // shrink)) if shrink > 1 else (0, 0)
        try:
            return _simplejpeg().decode_jpeg(  # type: ignore[no-any-return]
                self._data, "RGB", min_height=smallest[0], min_width=smallest[1]
            )
        except ValueError:
            return None

    def _from_pil(self, shrink: int) -> np.ndarray:
        image = self._opened
        if image is None or (self._data is not None and image.format == "JPEG"):
            # Opened again: a decoder set to a scale does not go back.
            image = _opened(self._data or b"")
            if shrink > 1 and image.format == "JPEG":
                image.draft(None, (-(-image.width // shrink), -(-image.height // shrink)))
        with _loading(self._salvage):
            return np.array(as_rgb(image))


def decode(image: bytes | str | Image.Image) -> np.ndarray:
    """Upright RGB pixels `[h, w, 3]` uint8 at full size.

    Raises:
        Broken: the file is missing, damaged, too large or not an image.
    """
    return Picture(image).pixels()


def _read(path: str) -> bytes:
    try:
        return read_file(path)
    except FileNotFoundError:
        raise Broken("no such file") from None
    except OSError as error:
        raise Broken(error.strerror or str(error)) from None


def _opened(data: bytes) -> Image.Image:
    with _loading(salvage=False):
        return Image.open(io.BytesIO(data), formats=list(FORMATS))


def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _jpeg_header(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that simplejpeg decodes as PIL would; None: leave it to PIL (CMYK,
    no simplejpeg, odd header)."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if colors in ("YCbCr", "Gray", "GRAY", "RGB") else None


@contextmanager
def _loading(salvage: bool) -> Iterator[None]:
    """PIL reads a file: what it cannot read is broken, and files that are cut off are so unless
    they are to be salvaged."""
    # A setting of the whole process is the only one that PIL has for this.
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, salvage
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        raise Broken("it is not an image in a supported format") from None
    except Image.DecompressionBombError:
        raise Broken(_TOO_LARGE) from None
    except Exception as error:  # its decoders raise whatever they stumble over
        raise Broken(" ".join(str(error).split()) or type(error).__name__) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def as_rgb(image: Image.Image) -> Image.Image:
    """`image.convert("RGB")`, but with 16-bit and floating-point grays scaled instead of clipped at
    255."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        # 32-bit integers are how PIL holds some 16-bit files; 255 stays the white of those that
        # never exceed it.
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = np.clip(values, 0, 65535) >> 8
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        if values.max(initial=0) <= 1:
            values = values * 255
        image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    elif image.mode in ("P", "PA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
