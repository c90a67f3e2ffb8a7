"""What the host does in a training step: profiles of vlkd and of open_clip with small batches,
where the device waits for the host."""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Callable

import torch
from gpu_steps import CONTEXT, TINY, Ours, Peer, captions, pictures
from gpu_table import Table

STEPS, SHOWN = 20, 22


def host(table: Table, tiny: bool) -> None:
    """Host time of a step without its waiting for the device, and the functions that it is spent
    in, printed."""
    model, batch = (TINY, 4) if tiny else ("ViT-B-32", 8)
    what, texts = f"{model} CLIP step, bf16, batch {batch}, host time", captions(batch)
    with table.case(what, "vlkd"):
        ours = Ours(model, table.device)
        images = pictures(batch, ours.size_px, table.device)
        _profile(table, what, "vlkd", ours.step(images, texts, tokens=CONTEXT))
    ours = images = None  # type: ignore[assignment]
    with table.case(what, "open_clip"):
        peer = Peer(model, table.device)
        images = pictures(batch, peer.size_px, table.device)
        _profile(table, what, "open_clip", peer.step(images, texts))


def _profile(table: Table, what: str, side: str, step: Callable[[], object]) -> None:
    seconds = min(_seconds(step, table.device) for _ in range(3))
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(STEPS):
        step()
    profile.disable()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(SHOWN)
    print(f"{side}, {STEPS} steps:", *text.getvalue().splitlines()[2:], sep="\n", flush=True)
    table.add(what, side, rate=1 / seconds, unit="steps/s", note=f"{1e3 * seconds:.2f} ms")


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """Until all kernels of a step are launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - begin) / STEPS
