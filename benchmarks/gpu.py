"""vlkd on one GPU, compared with open_clip and plain torch in the same process.

    python benchmarks/gpu.py --out FOLDER [--sections steps losses ...] [--seconds 345] [--tiny]
        [--lightly FOLDER]

Writes `gpu.md` and `gpu.json` after each measurement. A section that fails, runs out of memory or
of time leaves a row that states it. Pictures are random, and models are built from scratch, so
nothing is downloaded. Section `ssl` times lightly's step too where lightly is installed:

    pip install --no-deps --target lightly_only lightly==1.6.0    # once, next to the environment

`--tiny` runs every section with small sizes, also on a CPU, where the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
from gpu_host import host
from gpu_losses import losses, search
from gpu_recipes import recipes, ssl
from gpu_runs import decoding, frozen
from gpu_steps import CONTEXT, TINY, Ours, Peer, captions, flops, pictures
from gpu_table import OutOfTime, Table, Timing, limited, measure


def rates(table: Table, tiny: bool) -> None:
    """What the card can do."""
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        _product(table, name, dtype, 128 if tiny else 8192)
    torch.backends.cuda.matmul.allow_tf32 = False
    with table.case("copy", "torch"):
        count = (1 << 20) if tiny else (1 << 32)
        source = torch.zeros(count, dtype=torch.uint8, device=table.device)
        target = torch.empty_like(source)
        timing = measure(lambda: target.copy_(source), table.device)
        table.add("copy", "torch", timing, rate=2 * count / timing.seconds / 1e12, unit="TB/s")


def _product(table: Table, name: str, dtype: torch.dtype, size: int) -> None:
    what = f"{name} product {size}^3"
    with table.case(what, "torch"):
        one, other = (torch.randn(size, size, device=table.device).to(dtype) for _ in range(2))
        timing = measure(lambda: one @ other, table.device, calls=20)
        rate = 2 * size**3 / timing.seconds / 1e12
        table.add(what, "torch", timing, rate=rate, unit="TFLOP/s")


def steps(table: Table, tiny: bool) -> None:
    """A training step of CLIP on the same images and captions, padded to the same length, and
    with the captions cut to the longest, as vlkd gives them."""
    for model in (TINY,) if tiny else ("ViT-B-32", "ViT-B-16"):
        _steps(table, model, (4, 8) if tiny else (256, 1024))


def small_steps(table: Table, tiny: bool) -> None:
    """The one of these that waits most for the host."""
    _steps(table, TINY if tiny else "ViT-B-32", (4,) if tiny else (256,))


def _steps(table: Table, model: str, sizes: tuple[int, ...]) -> None:
    what = f"{model} CLIP step, bf16, batch"
    ours = Ours(model, table.device)
    for batch in sizes:
        texts = captions(batch)
        with table.case(f"{what} {batch}", "vlkd"):
            images = pictures(batch, ours.size_px, table.device)
            whole = ours.step(images, texts, tokens=CONTEXT)
            _add_step(table, f"{what} {batch}", "vlkd", batch, whole)
            cut = ours.step(images, texts)
            _add_step(table, f"{what} {batch}", "vlkd, captions cut", batch, cut)
    ours = images = whole = cut = None  # type: ignore[assignment]
    peer = Peer(model, table.device)
    for batch in sizes:
        with table.case(f"{what} {batch}", "open_clip"):
            images = pictures(batch, peer.size_px, table.device)
            step = peer.step(images, captions(batch))
            _add_step(table, f"{what} {batch}", "open_clip", batch, step)
    peer = images = step = None  # type: ignore[assignment]


def compiled(table: Table, tiny: bool) -> None:
    """The same with both sides compiled; the first step is not counted."""
    model, batch = (TINY, 4) if tiny else ("ViT-B-32", 256)
    what, texts = f"{model} CLIP step, bf16, batch {batch}, compiled", captions(batch)
    with table.case(what, "vlkd"):
        begin = time.perf_counter()
        ours = Ours(model, table.device, train={"compile": True})
        images = pictures(batch, ours.size_px, table.device)
        timing = measure(ours.step(images, texts, tokens=CONTEXT), table.device, warm_up=5)
        _add_rate(table, what, "vlkd", batch, timing, f"{time.perf_counter() - begin:.0f} s in all")
    ours = images = None  # type: ignore[assignment]
    with table.case(what, "open_clip"):
        begin = time.perf_counter()
        peer = Peer(model, table.device, compiles=True)
        images = pictures(batch, peer.size_px, table.device)
        timing = measure(peer.step(images, texts), table.device, warm_up=5)
        note = f"{time.perf_counter() - begin:.0f} s in all"
        _add_rate(table, what, "open_clip", batch, timing, note)


def one_frozen(table: Table, tiny: bool) -> None:
    """The image tower frozen: its features come out of the cache; open_clip's is locked."""
    model, batch = (TINY, 4) if tiny else ("ViT-B-32", 1024)
    what, texts = f"{model} CLIP step, bf16, batch {batch}, image tower frozen", captions(batch)
    with table.case(what, "vlkd"):
        ours = Ours(model, table.device, image={"train": "none"})
        images = pictures(batch, ours.size_px, table.device)
        _add_step(table, what, "vlkd", batch, ours.step(images, texts, tokens=CONTEXT))
    ours = images = None  # type: ignore[assignment]
    with table.case(what, "open_clip"):
        peer = Peer(model, table.device, locks=True)
        images = pictures(batch, peer.size_px, table.device)
        _add_step(table, what, "open_clip", batch, peer.step(images, texts))


def chunks(table: Table, tiny: bool) -> None:
    """A batch in chunks next to the whole one, and open_clip's --accum-freq next to its own; and a
    batch that no card holds whole."""
    small = (TINY, 8, 2) if tiny else ("ViT-B-32", 1024, 128)
    large = (TINY, 8, 4) if tiny else ("ViT-B-16", 1024, 256)
    for model, batch, chunk in (small, large):
        what, texts = f"{model} CLIP step, bf16, batch {batch} in chunks", captions(batch)
        whole = None
        for side, settings in (
            ("vlkd, whole", {}),
            (f"vlkd, chunk {chunk}", {"chunk": chunk}),
            ("vlkd, checkpoint_activations", {"checkpoint_activations": True}),
        ):
            with table.case(what, side):
                ours = Ours(model, table.device, train=settings)
                images = pictures(batch, ours.size_px, table.device)
                timing = measure(ours.step(images, texts, tokens=CONTEXT), table.device, calls=2)
                whole = whole or timing
                _add_rate(table, what, side, batch, timing, _times(timing, whole))
            ours = images = None  # type: ignore[assignment]
    peer, whole, count = Peer(model, table.device), None, batch // chunk
    for side in ("open_clip, whole", f"open_clip, --accum-freq {count}"):
        with table.case(what, side):
            images = pictures(batch, peer.size_px, table.device)
            step = (
                peer.accumulating_step(images, texts, count) if whole else peer.step(images, texts)
            )
            timing = measure(step, table.device, calls=2)
            whole = whole or timing
            _add_rate(table, what, side, batch, timing, _times(timing, whole))
        images = step = None  # type: ignore[assignment]
    peer = None  # type: ignore[assignment]
    model, batch, chunk = (TINY, 16, 4) if tiny else ("ViT-B-16", 16_384, 256)
    what = f"{model} CLIP step, bf16, batch {batch:,}"
    with table.case(what, f"vlkd, chunk {chunk}"):
        ours = Ours(model, table.device, train={"chunk": chunk})
        images = pictures(batch, ours.size_px, table.device)
        step = ours.step(images, captions(batch), tokens=CONTEXT)
        timing = measure(step, table.device, warm_up=0, blocks=1, calls=1)
        _add_rate(table, what, f"vlkd, chunk {chunk}", batch, timing, "one step, the first")


def _times(timing: Timing, whole: Timing) -> str:
    return "" if timing is whole else f"{timing.seconds / whole.seconds:.2f} times the whole"


def _add_step(table: Table, what: str, side: str, batch: int, step: Callable[[], object]) -> None:
    """Time a step, with the rate of its products."""
    # Small steps wait for the host, which takes a while to reach its pace.
    timing = measure(step, table.device, warm_up=10 if batch <= 256 else 3)
    rate = flops(step) / timing.seconds / 1e12
    peak = next((row["rate"] for row in table.rows if row["case"].startswith("bf16 product")), 0)
    share = f", {rate / peak:.0%} of the card's" if peak else ""
    _add_rate(table, what, side, batch, timing, f"{rate:.3g} TFLOP/s{share}")


def _add_rate(
    table: Table, what: str, side: str, batch: int, timing: Timing, note: str = ""
) -> None:
    table.add(what, side, timing, rate=batch / timing.seconds, unit="images/s", note=note)


# With the seconds that each may take.
SECTIONS: dict[str, tuple[Callable[[Table, bool], None], float]] = {
    "rates": (rates, 20),
    "steps": (steps, 110),
    "losses": (losses, 35),
    "search": (search, 25),
    "one_frozen": (one_frozen, 25),
    "chunks": (chunks, 75),
    "host": (host, 25),
    "frozen": (frozen, 35),
    "decoding": (decoding, 60),
    "small_steps": (small_steps, 25),
    "ssl": (ssl, 180),
    "recipes": (recipes, 120),
    "compiled": (compiled, 120),
}
ON_REQUEST = {"small_steps", "ssl", "recipes"}
"""Sections that run only where they are named."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=[name for name in SECTIONS if name not in ON_REQUEST],
    )
    parser.add_argument("--seconds", type=float, default=345.0, help="for all sections")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--lightly", help="the folder that lightly was installed into")
    given = parser.parse_args()
    if given.lightly:
        sys.path.append(given.lightly)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.tiny:
        parser.error("there is no GPU; --tiny runs on the CPU")
    table, begin = Table(given.out, device), time.perf_counter()
    for name in given.sections:
        section, seconds = SECTIONS[name]
        left = given.seconds - (time.perf_counter() - begin)
        if left < 5:
            table.add(name, "", note="not run: no time was left")
            continue
        started = time.perf_counter()
        try:
            with limited(left if given.tiny else min(seconds, left)):
                section(table, given.tiny)
        except OutOfTime:
            table.add(name, "", note=f"stopped after {time.perf_counter() - started:.0f} s")
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    table.write()
    print(table.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
