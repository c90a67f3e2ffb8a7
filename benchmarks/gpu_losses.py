"""InfoNCE and SigLIP at the sizes where the whole matrix hardly fits a card, and searching."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_table import Table, measure
from torch import Tensor

from vlkd_cli.distillers import tiles
from vlkd_cli.distillers.infonce import InfoNCE
from vlkd_cli.distillers.siglip import SigLIP
from vlkd_cli.evaluation.metrics.ranks import pair_ranks
from vlkd_cli.numerics.topk import top_k

WIDTH = 512


Loss = Callable[[Tensor, Tensor], Tensor]


def losses(table: Table, tiny: bool) -> None:
    """Value and gradient of both losses compared with open_clip's dense ones, from float32 features
    and from bfloat16 ones under autocast, as a 16-bit training has them."""
    for rows in (64, 128) if tiny else (32_768, 65_536):
        for dtype in (torch.float32, torch.bfloat16):
            features = _features(rows, dtype, table.device)
            for name, sides in (("InfoNCE", _infonce), ("SigLIP", _siglip)):
                what = f"{name} N={rows:,} d={WIDTH} {str(dtype).removeprefix('torch.')}"
                for side, loss in sides(table.device).items():
                    with table.case(what, side):
                        call = _both(loss, dtype, features)
                        timing = measure(call, table.device, warm_up=1, calls=1)
                        table.add(what, side, timing)
                if dtype == torch.bfloat16:
                    _other_tiles(table, what, sides(table.device)["vlkd"], dtype, features)


def _other_tiles(
    table: Table, what: str, loss: Loss, dtype: torch.dtype, features: tuple[Tensor, Tensor]
) -> None:
    """Tiles that fit a GPU's cache better, and wait for the host more."""
    usual = tiles.LARGEST_TILE_ON_GPU
    for size in (4096, 2048):
        side = f"vlkd, tiles of {size:,}"
        with table.case(what, side):
            tiles.LARGEST_TILE_ON_GPU = size
            call = _both(loss, dtype, features)
            table.add(what, side, measure(call, table.device, warm_up=1, calls=1))
        tiles.LARGEST_TILE_ON_GPU = usual


def _infonce(device: torch.device) -> dict[str, Loss]:
    from open_clip.loss import ClipLoss

    scale = torch.tensor(50.0, device=device, requires_grad=True)
    dense = ClipLoss()
    return {
        "vlkd": InfoNCE(logit_scale=50.0).to(device),
        "open_clip": lambda image, text: dense(F.normalize(image), F.normalize(text), scale),
    }


def _siglip(device: torch.device) -> dict[str, Loss]:
    from open_clip.loss import SigLipLoss

    scale, bias = (
        torch.tensor(value, device=device, requires_grad=True) for value in (50.0, -10.0)
    )
    dense = SigLipLoss()
    return {
        "vlkd": SigLIP(logit_scale=50.0).to(device),
        "open_clip": lambda image, text: dense(F.normalize(image), F.normalize(text), scale, bias),
    }


def _both(loss: Loss, dtype: torch.dtype, features: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """Forward and backward."""
    device = features[0].device.type

    def call() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(*features)
        value.backward()
        for each in features:
            each.grad = None

    return call


def _features(rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    image, noise = (torch.randn(rows, WIDTH, device=device, generator=generator) for _ in range(2))
    text = image + 1.5 * noise
    return image.to(dtype).requires_grad_(), text.to(dtype).requires_grad_()


def search(table: Table, tiny: bool) -> None:
    """The nearest rows and retrieval ranks compared with torch's dense product on the same
    device."""
    rows, queries, images, k = (500, 100, 50, 5) if tiny else (50_000, 10_000, 5_000, 20)
    train, asked = _unit(rows, 1, table.device), _unit(queries, 2, table.device)
    what = f"{k}-NN of {queries:,} in {rows:,} x {WIDTH}"
    with table.case(what, "vlkd"):
        timing = measure(lambda: top_k(asked, train, k), table.device)
        table.add(what, "vlkd", timing, rate=queries / timing.seconds, unit="queries/s")
    with table.case(what, "torch.topk"):
        timing = measure(lambda: (asked @ train.T).topk(k), table.device)
        table.add(what, "torch.topk", timing, rate=queries / timing.seconds, unit="queries/s")
    photos, texts = _unit(images, 3, table.device), _unit(5 * images, 4, table.device)
    counts = torch.full((images,), 5)
    what = f"ranks of {images:,} images and {5 * images:,} texts"
    with table.case(what, "vlkd"):
        table.add(what, "vlkd", measure(lambda: pair_ranks(photos, texts, counts), table.device))
    with table.case(what, "torch"):
        table.add(what, "torch", measure(lambda: _dense_ranks(photos, texts), table.device))


def _dense_ranks(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    scores = images @ texts.T
    owner = torch.arange(len(images), device=images.device).repeat_interleave(5)
    own = scores.T.gather(1, owner[:, None])[:, 0]
    best = own.view(-1, 5).amax(dim=1)
    return (scores > best[:, None]).sum(1) + 1, (scores > own[None, :]).sum(0) + 1


def _unit(rows: int, seed: int, device: torch.device) -> Tensor:
    centers = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 100, (rows,), generator=generator)
    noise = torch.randn(rows, WIDTH, generator=generator)
    return F.normalize(centers[label] + 1.5 * noise).to(device)
