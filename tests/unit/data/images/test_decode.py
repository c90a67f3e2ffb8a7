from __future__ import annotations

import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from tests.support.data_sets import encoded, photo
from tests.support.recipes import SMALL, recipe
from vlkd_cli.data.batch import Broken, Sample
from vlkd_cli.data.images import decode as images
from vlkd_cli.data.images.augment import SimCLRAugment, StandardAugment
from vlkd_cli.data.images.decode import Picture, decode
from vlkd_cli.data.images.resize import centered, fit, random_box, resize
from vlkd_cli.data.views import ImageView, render
from vlkd_cli.engine.views import build_augment
from vlkd_cli.preprocessing import ImageInput


def textured(height: int, width: int, seed: int = 0) -> Image.Image:
    """A photo-like picture: smooth noise at several scales."""
    draw = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    for scale in (4, 16, 64):
        coarse = Image.fromarray(
            draw.integers(
                0, 256, (max(height // scale, 2), max(width // scale, 2), 3), dtype=np.uint8
            )
        )
        pixels += (
            np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
            / 3
        )
    return Image.fromarray(pixels.astype(np.uint8))


def pil_rgb(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.fixture(params=["simplejpeg", "PIL alone"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "PIL alone":
        monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")
    return str(request.param)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(photo(1)), id="jpeg"),
        pytest.param(encoded(photo(1), progressive=True), id="progressive jpeg"),
        pytest.param(encoded(photo(1).convert("L")), id="gray jpeg"),
        pytest.param(encoded(photo(1).convert("CMYK")), id="CMYK jpeg"),
        pytest.param(encoded(photo(1).convert("P"), "PNG"), id="palette png"),
        pytest.param(encoded(photo(1).convert("L"), "PNG"), id="gray png"),
        pytest.param(encoded(photo(1).convert("1"), "PNG"), id="one-bit png"),
        pytest.param(encoded(photo(1).convert("LA"), "PNG"), id="gray and alpha png"),
        pytest.param(encoded(photo(1).convert("P"), "GIF"), id="gif"),
        pytest.param(encoded(photo(1), "WEBP", lossless=True), id="webp"),
        pytest.param(encoded(photo(1), "BMP"), id="bmp"),
        pytest.param(encoded(photo(1), "TIFF"), id="tiff"),
    ],
)
def test_pixels_are_those_of_pil(data: bytes, decoder: str) -> None:
    pixels, expected = decode(data), pil_rgb(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 2  # two builds of libjpeg may round apart


def test_transparency_is_dropped_as_convert_rgb_does() -> None:
    image = photo(2).convert("RGBA")
    image.putalpha(60)
    assert np.array_equal(decode(encoded(image, "PNG")), np.asarray(photo(2)))
    palette = photo(2).convert("P")
    data = encoded(palette, "PNG", transparency=bytes(range(256)))
    assert np.array_equal(
        decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB"))
    )


def test_sixteen_bit_grays_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(values), "PNG"))
    assert np.array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert np.array_equal(decode(Image.fromarray(values.astype(np.int32), mode="I")), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(orientation: int, kind: str, decoder: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(3), kind, exif=exif)
    picture = Picture(data)
    pixels, expected = picture.pixels(), pil_rgb(data)
    assert (picture.height, picture.width) == pixels.shape[:2] == expected.shape[:2]
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def with_jpeg_block(block: bytes, marker: int = 0xE1) -> bytes:
    """The JPEG of `photo(3)` with one more segment in front."""
    whole = encoded(photo(3), quality=95)
    return whole[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(block) + 2) + block + whole[2:]


def with_png_chunk(kind: bytes, content: bytes) -> bytes:
    """The PNG of `photo(3)` with one more chunk behind its header."""
    whole = encoded(photo(3), "PNG")
    check = struct.pack(">I", zlib.crc32(kind + content))
    return whole[:33] + struct.pack(">I", len(content)) + kind + content + check + whole[33:]


def tiff_block(kind: int, value: bytes, count: int = 1) -> bytes:
    """EXIF data with an orientation alone: type 3 is a 16-bit number, 2 text, 7 undefined."""
    return b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x112, kind, count) + value.ljust(8, b"\0")


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0" + XMP


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(tiff_block(2, b"6\0", 2), id="text"),
        pytest.param(tiff_block(7, b"\6\0\0\0", 4), id="bytes"),
        pytest.param(tiff_block(3, struct.pack("<H", 9)), id="9"),
        pytest.param(tiff_block(3, struct.pack("<H", 0)), id="0"),
        pytest.param(tiff_block(3, struct.pack("<H", 65535)), id="65535"),
        pytest.param(tiff_block(9, struct.pack("<i", -6)), id="-6"),
        pytest.param(b"II*\0\xff\xff\xff\xff", id="cut off"),
        pytest.param(b"no tiff", id="no EXIF"),
    ],
)
def test_only_2_to_8_turn_a_picture(block: bytes, decoder: str) -> None:
    for data in (with_jpeg_block(b"Exif\0\0" + block), with_png_chunk(b"eXIf", block)):
        picture = Picture(data)
        assert (picture.height, picture.width) == (40, 56)
        assert picture.pixels().shape == (40, 56, 3)
        assert np.abs(picture.pixels().astype(int) - np.asarray(photo(3))).max() <= 8


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(with_jpeg_block(XMP_SEGMENT), id="jpeg"),
        pytest.param(
            with_jpeg_block(b"ICC_PROFILE\0\1\2" + bytes(65000), 0xE2)[:65020]
            + with_jpeg_block(XMP_SEGMENT)[2:],
            id="jpeg, behind a large segment",
        ),
        pytest.param(
            with_png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
            id="png, compressed",
        ),
    ],
)
def test_an_orientation_in_xmp_alone_turns_as_pillow_does(data: bytes, decoder: str) -> None:
    picture = Picture(data)
    assert (picture.height, picture.width) == (56, 40)
    assert np.abs(picture.pixels().astype(int) - pil_rgb(data)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_other_formats_are_turned_too_and_say_their_upright_size(
    orientation: int, kind: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    keys = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(3), kind, exif=exif, **keys)
    for picture in (Picture(data), Picture(Image.open(io.BytesIO(data)))):
        assert np.array_equal(picture.pixels(), pil_rgb(data))
        assert (picture.height, picture.width) == picture.pixels().shape[:2]


def vast_jpeg(height: int, width: int) -> bytes:
    """A JPEG whose header promises far more pixels than it holds."""
    data = bytearray(encoded(photo(1)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def vast_png(height: int, width: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + encoded(photo(1), "PNG")[33:]
    )


@pytest.mark.parametrize("size", [(14_000, 13_000), (60_000, 60_000)])
@pytest.mark.parametrize("make", [vast_jpeg, vast_png])
@pytest.mark.parametrize("limit", [None, Image.MAX_IMAGE_PIXELS])
def test_the_header_of_a_vast_picture_makes_it_broken_whatever_its_format(
    make: Callable[[int, int], bytes],
    size: tuple[int, int],
    limit: int | None,
    decoder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Broken, match="more than 178,956,970 pixels"):
        Picture(make(*size))


@pytest.mark.parametrize("kind", ["PCX", "TGA", "ICNS", "EPS", "SGI", "ICO"])
def test_formats_that_the_docs_do_not_name_are_not_opened(kind: str) -> None:
    with pytest.raises(Broken, match="not an image in a supported format"):
        Picture(encoded(photo(1), kind))


def test_a_pipe_socket_or_folder_among_the_images_is_broken_and_not_waited_for(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "c.jpg"))
        for name in ("a.jpg", "c.jpg"):
            with pytest.raises(Broken, match="pipe, socket or device|No such device"):
                Picture(str(tmp_path / name))
    with pytest.raises(Broken, match="folder"):
        Picture(str(tmp_path / "b.jpg"))
    with pytest.raises(Broken, match="device"):
        Picture("/dev/zero")
    for path in ("a\0.jpg", "a\ud83d.jpg"):
        with pytest.raises(Broken, match="no such file"):
            Picture(path)


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_jpeg_decoded_at_a_fraction_is_close_to_the_resized_whole(
    shrink: int, decoder: str
) -> None:
    image = textured(200, 264)
    data = encoded(image, quality=95)
    small = Picture(data).pixels(shrink)
    assert small.shape[:2] == (200 // shrink, 264 // shrink)
    whole = np.asarray(
        Image.open(io.BytesIO(data)).resize((264 // shrink, 200 // shrink), Image.Resampling.BOX)
    )
    assert np.abs(small.astype(int) - whole).mean() < 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no picture at all", "not an image"),
        (encoded(textured(64, 64), "JPEG")[:900], "truncated|No reference|broken"),
    ],
)
def test_damaged_files_are_broken_with_a_reason(
    content: bytes, reason: str, tmp_path: Path, decoder: str
) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(Broken, match=reason):
        decode(str(tmp_path / "bad.jpg"))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_file_that_is_cut_off_is_salvaged_where_that_is_asked_for(
    form: str, decoder: str
) -> None:
    whole = np.asarray(Image.open(io.BytesIO(encoded(textured(64, 64), form))))
    data = encoded(textured(64, 64), form)
    pixels = Picture(data[: len(data) * 3 // 4], salvage=True).pixels()
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels[:16].astype(int) - whole[:16]).mean() < 3
    assert len(np.unique(pixels[-8:].reshape(-1, 3), axis=0)) == 1
    with pytest.raises(Broken):
        Picture(data[: len(data) * 3 // 4]).pixels()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_missing_file_is_broken() -> None:
    with pytest.raises(Broken, match="no such file"):
        decode("nowhere.jpg")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(50, 70), (224, 224), (301, 500)])
def test_resizing_is_within_one_gray_level_of_pil(
    interpolation: str, size: tuple[int, int]
) -> None:
    image = textured(240, 320)
    resized = resize(np.array(image), size, interpolation, exact=True).permute(1, 2, 0).numpy()
    expected = np.asarray(image.resize(size[::-1], Image.Resampling[interpolation.upper()]))
    assert np.abs(resized.astype(int) - expected).max() <= (0 if interpolation == "nearest" else 1)


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (100, 333), (224, 224)])
@pytest.mark.parametrize("resize_px", [None, 256, 224])
def test_fitting_by_the_shorter_side_is_torchvisions_resize_and_crop(
    shape: tuple[int, int], resize_px: int | None
) -> None:
    image = textured(*shape)
    fitted = fit(np.array(image), ImageInput(resize_px=resize_px)).permute(1, 2, 0).numpy()
    expected = CenterCrop(224)(Resize(resize_px or 224, InterpolationMode.BICUBIC)(image))
    assert np.abs(fitted.astype(int) - np.asarray(expected)).max() <= 1


def test_squash_ignores_the_aspect_ratio_and_longest_pads_with_black() -> None:
    image = textured(60, 120)
    squashed = (
        fit(np.array(image), ImageInput(size_px=(40, 40), resize="squash")).permute(1, 2, 0).numpy()
    )
    assert (
        np.abs(
            squashed.astype(int) - np.asarray(image.resize((40, 40), Image.Resampling.BICUBIC))
        ).max()
        <= 1
    )
    padded = fit(np.array(image) | 1, ImageInput(size_px=(40, 40), resize="longest"))
    assert padded[:, :10].max() == 0 and padded[:, 30:].max() == 0 and padded[:, 10:30].min() >= 1


@pytest.mark.parametrize("expected", [ImageInput((224, 224)), ImageInput((224, 224), resize_px=32)])
@pytest.mark.parametrize("size", [(2, 1000), (1000, 2)])
def test_a_strip_is_fitted_without_resizing_all_of_it(
    size: tuple[int, int], expected: ImageInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.array(photo(4, size))
    whole = fit(pixels, expected)
    monkeypatch.setattr("vlkd_cli.data.images.resize._LARGEST_RESIZED", 1000)
    assert np.abs(fit(pixels, expected).numpy().astype(int) - whole.numpy()).max() <= 3
    monkeypatch.undo()
    assert fit(np.zeros((1, 200_000, 3), dtype=np.uint8), expected).shape == (3, 224, 224)


def test_a_crop_larger_than_the_image_is_padded_around_it() -> None:
    padded = centered(torch.full((3, 4, 6), 9, dtype=torch.uint8), (8, 6))
    assert (
        padded.shape == (3, 8, 6)
        and padded[:, 2:6].min() == 9
        and padded[:, :2].max() == 0
        and padded[:, 6:].max() == 0
    )


def test_random_boxes_keep_to_scale_and_ratio_and_stay_inside() -> None:
    draw = random.Random(0)
    shares, ratios = [], []
    for _ in range(500):
        box = random_box((300, 400), scale=(0.2, 0.8), ratio=(0.75, 4 / 3), rng=draw)
        assert 0 <= box.top <= 300 - box.height and 0 <= box.left <= 400 - box.width
        shares.append(box.height * box.width / 120_000)
        ratios.append(box.width / box.height)
    assert 0.19 < min(shares) < 0.25 and 0.75 < max(shares) < 0.81
    assert 0.74 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.35


def test_where_no_box_fits_the_largest_allowed_is_taken_from_the_middle() -> None:
    box = random_box((10, 400), scale=(0.9, 1.0), ratio=(0.75, 4 / 3), rng=random.Random(0))
    assert (box.height, box.width, box.left) == (10, 13, 193)


@pytest.mark.parametrize(
    "augment", [StandardAugment(), SimCLRAugment()], ids=["standard", "simclr"]
)
def test_an_augmentation_depends_on_the_samples_seed_only(augment: StandardAugment) -> None:
    view = ImageView(ImageInput(size_px=(32, 32)), augment)
    data = encoded(textured(120, 90))
    torch.manual_seed(0)
    random.seed(0)
    first = view([Sample(0, data, (), seed=5)])
    torch.manual_seed(1)
    random.seed(1)
    assert torch.equal(first, view([Sample(3, data, (), seed=5)]))
    assert not torch.equal(first, view([Sample(0, data, (), seed=6)]))
    assert first.dtype == torch.uint8 and first.shape == (1, 3, 32, 32)


def test_color_changes_are_sampled_within_their_strength() -> None:
    gray = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    brightened = [
        int(StandardAugment(brightness=0.4).finish(gray, random.Random(seed))[0, 0, 0])
        for seed in range(200)
    ]
    assert 60 <= min(brightened) < 65 and 135 < max(brightened) <= 140
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0] = 200
    assert (
        len(set(StandardAugment(grayscale=1.0).finish(red, random.Random(0))[:, 0, 0].tolist()))
        == 1
    )
    assert torch.equal(StandardAugment(flip=1.0).finish(red, random.Random(0)), red.flip(-1))
    assert StandardAugment(blur=1.0).finish(red, random.Random(0)).shape == red.shape


def test_several_views_decode_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    original = Picture.pixels
    monkeypatch.setattr(
        Picture, "pixels", lambda self, shrink=1: counts.append(shrink) or original(self, shrink)
    )
    sample = Sample(0, encoded(textured(400, 400)), (), seed=1)
    small, large = (
        ImageView(ImageInput(size_px=(32, 32)), StandardAugment()),
        ImageView(ImageInput(size_px=(160, 160)), StandardAugment()),
    )
    copies = ImageView(ImageInput(size_px=(32, 32)), StandardAugment(), copies=5)
    plain = ImageView(ImageInput(size_px=(32, 32)))
    for views in ([small, large], [small], [small, plain], [copies, small]):
        render(sample, views, [view.empty(1)[0] for view in views])
    assert counts == [2, 8, 1, 8]


def pictures_of(view: ImageView, seed: int = 1, salt: int = 0) -> Tensor:
    room = view.empty(1)
    # Not a JPEG file, which other views make be decoded at another scale.
    sample = Sample(0, textured(100, 80), (), seed=seed)
    render(sample, [view], [room[0]], [salt])
    return room[0]


def test_a_view_with_copies_has_that_many_independently_augmented_pictures() -> None:
    strong = StandardAugment(scale=(0.1, 0.6), flip=0.5)
    one = ImageView(ImageInput(size_px=(24, 24)), strong)
    three = ImageView(ImageInput(size_px=(24, 24)), strong, copies=3)
    pictures = pictures_of(three)
    assert three.pictures == 3 and pictures.shape == (3, 3, 24, 24)
    assert three.empty(2).shape == (2, 3, 3, 24, 24) and one.empty(2).shape == (2, 3, 24, 24)
    # The first picture is that of a view without copies, so that adding copies changes no other.
    assert pictures[0].equal(pictures_of(one))
    assert not pictures[1].equal(pictures[0]) and not pictures[1].equal(pictures[2])
    assert pictures.equal(pictures_of(three))
    assert not pictures.equal(pictures_of(three, seed=2))
    assert not pictures[1].equal(pictures_of(three, salt=7)[1])


class Halves(StandardAugment):
    """Two pictures of one region: its left and its right half, at a size of their own."""

    pictures: ClassVar[int] = 2

    def size(self, expected: ImageInput) -> tuple[int, int]:
        return 8, 8

    def apply(self, pixels: Any, full: Any, box: Any, expected: Any, draw: Any) -> list[Tensor]:
        (whole,) = super().apply(pixels, full, box, expected._replace(size_px=(8, 16)), draw)
        return [whole[:, :, :4].repeat(1, 1, 2), whole[:, :, 4:].repeat(1, 1, 2)]


def test_pictures_of_one_draw_and_copies_multiply() -> None:
    view = ImageView(ImageInput(size_px=(24, 24)), Halves(), copies=3)
    assert view.pictures == 6 and view.size_px == (8, 8)
    assert pictures_of(view).shape == (6, 3, 8, 8)


def test_augment_none_is_the_evaluation_transform() -> None:
    text = SMALL.replace("{reader: shapes}", "{reader: shapes, augment: {name: none}}")
    assert build_augment(recipe(text)) is None
    scaled = text.replace("name: none", "name: standard, scale: [0.5, 1.0]")
    assert build_augment(recipe(scaled)).scale == (0.5, 1.0)
