"""Objectives, crops and masks of self-supervised learning against lightly 1.6.0 and the authors'
formulas: CPU time and peak memory, float32, one thread, forward and backward.

    pip install --no-deps --target lightly_only lightly==1.6.0    # once, next to the environment
    python benchmarks/self_supervision.py [--lightly lightly_only] [--rounds 3] [--only NAME ...]
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/self_supervision.py

Both sides of a row take turns, each in a process of its own. Rows whose peer is lightly are left
out without it. Exits with 1 where a floor or a bound on memory does not hold.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from forked import compare, cost, report
from PIL import Image
from torch import Tensor

from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.types import Progress

Work = Callable[[], Callable[[], object]]
WIDTH = 128


class Row(NamedTuple):
    """What is computed by both sides, by how much vlkd must be faster and smaller, and the most
    MiB that it may take."""

    ours: Work
    peer: Work
    faster: float
    smaller: float | None
    needs_lightly: bool = False
    most_mib: float = float("inf")


def rows(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator)


def distiller(
    name: str, student: Any, teacher: Any, sizes: dict[str, int] | None = None, **keys: Any
) -> Any:
    torch.manual_seed(0)
    made = make("distiller", name, keys)
    made.setup(student, teacher, **(sizes or {}))
    return made.train()


# -- SimCLR ----------------------------------------------------------------------------------------


def two_views(batch: int) -> tuple[Tensor, Tensor]:
    return rows(batch).requires_grad_(), rows(batch, seed=1).requires_grad_()


def ntxent(batch: int) -> Work:
    def prepare() -> Callable[[], object]:
        first, second = two_views(batch)
        loss = distiller("ntxent", WIDTH, WIDTH)
        return lambda: loss(first, second).backward()

    return prepare


def ntxent_of_lightly(batch: int) -> Work:
    def prepare() -> Callable[[], object]:
        from lightly.loss.ntx_ent_loss import NTXentLoss

        first, second = two_views(batch)
        loss = NTXentLoss(temperature=0.1)
        return lambda: loss(first, second).backward()

    return prepare


def ntxent_dense(batch: int) -> Work:
    """The 2N x 2N matrix of the paper's formula."""

    def prepare() -> Callable[[], object]:
        first, second = two_views(batch)

        def work() -> None:
            unit = F.normalize(torch.cat([first, second]), dim=1)
            logits = (unit @ unit.T / 0.1).fill_diagonal_(-torch.inf)
            F.cross_entropy(logits, torch.arange(2 * batch).roll(batch)).backward()

        return work

    return prepare


# -- MoCo, NPID ------------------------------------------------------------------------------------

QUEUE, BATCH = 65536, 256


def moco() -> Callable[[], object]:
    query, key = rows(BATCH).requires_grad_(), rows(BATCH, seed=1)
    loss = distiller("moco", WIDTH, WIDTH, queue_size=QUEUE)

    def work() -> None:
        loss(query, key).backward()
        loss.commit(Progress())

    return work


def moco_of_lightly() -> Callable[[], object]:
    from lightly.loss.ntx_ent_loss import NTXentLoss

    query, key = rows(BATCH).requires_grad_(), rows(BATCH, seed=1)
    loss = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, WIDTH))
    return lambda: loss(query, key).backward()


NUM_SAMPLES, NEGATIVES = 100_000, 4096


def npid() -> Callable[[], object]:
    features, indices = rows(BATCH).requires_grad_(), torch.arange(BATCH)
    loss = distiller("npid", WIDTH, None, {"num_rows": NUM_SAMPLES}, num_negatives=NEGATIVES)

    def work() -> None:
        loss(features, indices=indices, progress=Progress()).backward()
        loss.commit(Progress())

    return work


def npid_of_the_authors() -> Callable[[], object]:
    """Negatives of its own for each row: a gather of B x K x D numbers."""
    features, indices = rows(BATCH).requires_grad_(), torch.arange(BATCH)
    bank = F.normalize(rows(NUM_SAMPLES, seed=2), dim=1)
    chosen = torch.randint(NUM_SAMPLES, (BATCH, NEGATIVES))

    def work() -> None:
        unit = F.normalize(features, dim=1)
        sampled = bank[torch.cat([indices[:, None], chosen], dim=1)]
        scores = (torch.einsum("bd,bkd->bk", unit, sampled) / 0.07).exp()
        chances = scores / (NUM_SAMPLES * scores.mean().detach())
        noise = NEGATIVES / NUM_SAMPLES
        hit = (chances[:, 0] / (chances[:, 0] + noise)).log()
        miss = (noise / (chances[:, 1:] + noise)).log().sum(1)
        (-(hit + miss).mean()).backward()
        with torch.no_grad():
            bank[indices] = F.normalize((bank[indices] + unit) / 2, dim=1)

    return work


# -- SwAV, DINO with iBOT --------------------------------------------------------------------------

CROPS, PROTOTYPES = 8, 3000


def swav() -> Callable[[], object]:
    views = tuple(rows(64, seed=seed).requires_grad_() for seed in range(CROPS))
    loss = distiller("swav", (WIDTH,) * CROPS, (WIDTH,) * 2, num_prototypes=PROTOTYPES)
    return lambda: loss(views, views[:2]).backward()


def swav_of_lightly() -> Callable[[], object]:
    from lightly.loss.swav_loss import SwaVLoss

    views = [rows(64, seed=seed).requires_grad_() for seed in range(CROPS)]
    prototypes = rows(PROTOTYPES, seed=99).requires_grad_()
    loss = SwaVLoss()

    def work() -> None:
        layer = F.normalize(prototypes, dim=1)
        logits = [F.normalize(view, dim=1) @ layer.T for view in views]
        loss(logits[:2], logits[2:]).backward()

    return work


IMAGES, PLACES, HIDDEN, TOKEN_WIDTH, CODES, PICTURES = 32, 196, 59, 384, 4096, 10


class Tokens(NamedTuple):
    """What a ViT-S gives for a batch, which positions are hidden (30 %), and a head of prototypes.

    Args:
        classes: of the student's ten pictures, `[10, B, D]`; the teacher has the first two.
        places: of one picture, `[B, T, D]`.
    """

    head: Any
    classes: Tensor
    places: Tensor
    hidden: Tensor


def tokens() -> Tokens:
    torch.manual_seed(0)
    keys = {"num_prototypes": CODES, "hidden": 512, "bottleneck": 128}
    head = make("head", "prototypes", keys, TOKEN_WIDTH)
    classes = rows(PICTURES * IMAGES, TOKEN_WIDTH, 1).view(PICTURES, IMAGES, TOKEN_WIDTH)
    places = rows(IMAGES * PLACES, TOKEN_WIDTH).view(IMAGES, PLACES, TOKEN_WIDTH)
    hidden = torch.rand(IMAGES, PLACES).argsort(1) < HIDDEN
    return Tokens(head, classes.requires_grad_(), places.requires_grad_(), hidden)


def dino_and_ibot() -> Callable[[], object]:
    """The head runs on class tokens and on hidden positions only (`at: hidden`)."""
    head, classes, places, hidden = tokens()
    dino = distiller("dino", (CODES,) * PICTURES, (CODES,) * 2, num_prototypes=None)
    ibot = distiller("ibot", CODES, CODES)
    samples = torch.arange(IMAGES).repeat_interleave(hidden.sum(1))
    named = {"samples": samples, "indices": torch.arange(IMAGES), "progress": Progress()}

    def work() -> None:
        with torch.no_grad():
            teacher = head(places[hidden] + 0.1)
            of_classes = head(classes[:2].flatten(0, 1) + 0.1).chunk(2)
        predicted = head(classes.flatten(0, 1)).chunk(PICTURES)
        loss = dino(predicted, of_classes) + ibot(head(places[hidden]), teacher, **named)
        loss.backward()
        for each in (dino, ibot):
            each.commit(Progress())

    return work


def dino_and_ibot_of_the_authors() -> Callable[[], object]:
    """The head and the cross-entropy run on all positions; a mask selects at the end."""
    head, classes, places, hidden = tokens()
    centers = torch.zeros(2, CODES)

    def work() -> None:
        with torch.no_grad():
            logits = head(places.flatten(0, 1) + 0.1)
            targets = ((logits - centers[0]) / 0.04).softmax(-1)
            of_classes = head(classes[:2].flatten(0, 1) + 0.1)
            views = ((of_classes - centers[1]) / 0.04).softmax(-1).chunk(2)
        predicted = head(places.flatten(0, 1)) / 0.1
        each = (-targets * predicted.log_softmax(-1)).sum(-1).view(IMAGES, PLACES)
        loss = ((each * hidden).sum(1) / hidden.sum(1).clamp(min=1)).mean()
        students = (head(classes.flatten(0, 1)) / 0.1).chunk(PICTURES)
        pairs = [(q, s) for u, q in enumerate(views) for v, s in enumerate(students) if u != v]
        entropies = [(-q * s.log_softmax(-1)).sum(-1).mean() for q, s in pairs]
        (loss + torch.stack(entropies).mean()).backward()
        for center, seen in zip(centers, (logits, of_classes), strict=True):
            center.lerp_(seen.mean(0), 0.1)

    return work


# -- Crops and masks -------------------------------------------------------------------------------

NUM_PHOTOS = 40


def photos() -> list[bytes]:
    """JPEG files of 500 x 375 pixels with as much detail as photos have."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(NUM_PHOTOS):
        coarse = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


def crops() -> Callable[[], object]:
    """Two crops of 224 and eight of 96 pixels, from one decode."""
    from vlkd_cli.data.batch import Sample
    from vlkd_cli.data.views import ImageView, render
    from vlkd_cli.preprocessing import ImageInput

    files = photos()

    def view(scale: tuple[float, float], size_px: int, copies: int) -> ImageView:
        augment = make("augment", "standard", {"scale": scale, "flip": 0.5})
        return ImageView(ImageInput(size_px=(size_px, size_px)), augment, copies=copies)

    views = [view((0.4, 1.0), 224, 2), view((0.05, 0.4), 96, 8)]

    def work() -> None:
        for number, file in enumerate(files):
            rooms = [each.empty(1)[0] for each in views]
            render(Sample(number, file, seed=number), views, rooms, [0, 1])

    return work


def crops_of_torchvision() -> Callable[[], object]:
    """The same ten crops, each with a decode of its own, as a data set of views makes them."""
    from torchvision.transforms import v2

    def transform(scale: tuple[float, float], size_px: int) -> Any:
        return v2.Compose(
            [
                v2.RandomResizedCrop(
                    size_px, scale=scale, interpolation=v2.InterpolationMode.BICUBIC
                ),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
            ]
        )

    files = photos()
    views = [transform((0.4, 1.0), 224)] * 2 + [transform((0.05, 0.4), 96)] * 8

    def work() -> None:
        for file in files:
            for view in views:
                view(Image.open(io.BytesIO(file)).convert("RGB"))

    return work


def encoder(masks: str) -> Work:
    """A ViT-S/16 on 32 pictures of which three quarters are left out, or nothing."""

    def prepare() -> Callable[[], object]:
        torch.manual_seed(0)
        backbone: Any = make("builder", "timm", {"model": "vit_small_patch16_224"}).build("image")
        backbone.grid((224, 224))  # found once, when a run is built
        images = torch.randn(32, 3, 224, 224)
        hidden = torch.rand(32, 196).argsort(1) < 147
        return lambda: backbone(images, hidden, masks).tokens.values.square().mean().backward()

    return prepare


ROWS: dict[str, Row] = {
    "ntxent B 2048, lightly": Row(ntxent(2048), ntxent_of_lightly(2048), 2.0, 3.0, True, 90),
    "ntxent B 2048, dense formula": Row(ntxent(2048), ntxent_dense(2048), 1.2, 3.0),
    "moco queue 65536, lightly": Row(lambda: moco(), lambda: moco_of_lightly(), 1.5, 8.0, True, 10),
    "npid 4096 negatives, gather of each row": Row(
        lambda: npid(), lambda: npid_of_the_authors(), 10.0, 10.0, most_mib=40
    ),
    "swav 2 + 6 crops, lightly": Row(lambda: swav(), lambda: swav_of_lightly(), 1.0, 2.0, True),
    "dino and ibot on hidden positions, on all": Row(
        lambda: dino_and_ibot(), lambda: dino_and_ibot_of_the_authors(), 2.0, 4.0
    ),
    "2 + 8 crops of a JPEG, torchvision": Row(
        lambda: crops(), lambda: crops_of_torchvision(), 2.0, None
    ),
    "MAE's encoder, undropped": Row(encoder("drop"), encoder("none"), 2.86, None),
}
LARGE, LARGE_MIB = 8192, 300


def has_lightly() -> bool:
    try:
        import lightly.loss.ntx_ent_loss  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lightly", help="the folder that lightly was installed into")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="rows whose names begin like this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.lightly:
        sys.path.append(options.lightly)
    known, fine = has_lightly(), True
    for name, each in ROWS.items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        if each.needs_lightly and not known:
            print(f"{name}: left out; install lightly as `--help` shows.")
            continue
        costs = compare(each.ours, each.peer, options.rounds)
        fine &= report(name, *costs, faster=each.faster, smaller=each.smaller)
        fine &= costs[0].peak_mib <= each.most_mib
    if not options.only:
        alone = cost(ntxent(LARGE))
        print(f"ntxent B {LARGE}: vlkd {alone.cpu:.2f} s CPU, {alone.peak_mib:.0f} MiB")
        fine &= alone.peak_mib <= LARGE_MIB
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
