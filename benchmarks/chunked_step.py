"""A training step in chunks next to the whole one, next to open_clip's `--accum-freq` and to
sentence-transformers' cached loss next to theirs, on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/chunked_step.py [--batch 256] [--chunk 64] [--rounds 3]

Both sides have the same network and the same data, captions padded to one length. The whole step
and the one in chunks take turns in one process, and time is the median of each. Memory is the most
of two steps (gradients and the optimizer's state included) beyond the model, in a process of its
own with an allocator that returns large tensors at once, and with the code that a step needs in
memory. The exit code is 1 where vlkd's step in chunks takes more than 1.35 times the whole one, or
a hundredth more memory than a whole step of as many pairs as a chunk has: the outputs of all rows,
and what the system counts by pages.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_steps import OPTIMIZER, SMALL, Ours, Peer, captions, pictures
from torch import Tensor, nn

Step = Callable[[], object]
CPU = torch.device("cpu")
MOST_TIME, SLACK = 1.35, 0.01
TOKENS = 24


def ours(batch: int, chunk: int | None) -> Step:
    side = Ours(SMALL, CPU, train={"precision": "fp32", "chunk": chunk})
    return side.step(pictures(batch, side.size_px, CPU), captions(batch), tokens=TOKENS)


def open_clip(batch: int, chunk: int | None) -> Step:
    side = Peer(SMALL, CPU, casts=False)
    images, texts = pictures(batch, side.size_px, CPU), captions(batch)
    if chunk is None:
        return side.step(images, texts)
    return side.accumulating_step(images, texts, batch // chunk)


class Encoder(nn.Module):
    """vlkd's text tower as sentence-transformers calls it."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        tokens = {key: features[key] for key in features if isinstance(features[key], Tensor)}
        return {**features, "sentence_embedding": self.tower.encode(tokens)}


TEXTS: dict[str, Any] = {
    "distillers": [{"name": "infonce", "student": "text", "teacher": "text@second"}],
    "data": {"reader": "shapes", "views": {"second": None}},
}


def ours_of_texts(batch: int, chunk: int | None) -> Step:
    side = Ours(SMALL, CPU, train={"precision": "fp32", "chunk": chunk}, sections=TEXTS)
    return side.text_step(captions(2 * batch), tokens=TOKENS)


def sentence_transformers(batch: int, chunk: int | None) -> Step:
    from sentence_transformers import SentenceTransformer, losses

    side = Ours(SMALL, CPU, sections=TEXTS)
    tower: Any = side.trainer.composition.tower("text")
    model = SentenceTransformer(modules=[Encoder(tower)], device="cpu")
    loss: Any = (
        losses.MultipleNegativesRankingLoss(model)
        if chunk is None
        else losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=chunk)
    )
    texts = captions(2 * batch)
    pairs = [side.text(part, TOKENS) for part in (texts[:batch], texts[batch:])]
    optimizer = torch.optim.AdamW(tower.parameters(), lr=OPTIMIZER["lr"], fused=True)
    model.train()

    def step() -> None:
        loss([dict(each) for each in pairs], None).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


SIDES: dict[str, Callable[[int, int | None], Step]] = {
    "vlkd, images and texts": ours,
    "open_clip, --accum-freq": open_clip,
    "vlkd, pairs of texts": ours_of_texts,
    "sentence-transformers, cached loss": sentence_transformers,
}


def memory_mib(name: str, batch: int, chunk: int | None) -> float:
    """Memory of the first two steps beyond the model."""
    small = SIDES[name](4, chunk and 2)  # brings the code into memory
    for _ in range(2):
        small()
    del small
    step = SIDES[name](batch, chunk)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _kib("VmRSS")
    for _ in range(2):
        step()
    return (_kib("VmHWM") - before) / 1024


def _kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def seconds(name: str, batch: int, chunk: int, rounds: int) -> tuple[float, float]:
    """Median CPU time of the whole step and of one in chunks, which take turns."""
    steps = [SIDES[name](batch, size) for size in (None, chunk)]
    for step in steps:
        for _ in range(2):
            step()
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, times in zip(steps, found, strict=True):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
    whole, chunked = map(statistics.median, found)
    return whole, chunked


CASES: dict[str, Callable[..., object]] = {"memory": memory_mib, "time": seconds}


def in_a_process(kind: str, *sizes: object, **variables: str) -> Any:
    """A case in a process of its own, with these environment variables."""
    words = [sys.executable, __file__, "--case", json.dumps([kind, *sizes])]
    environment = {**os.environ, **variables}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        kind, *sizes = json.loads(given.case)
        print(json.dumps(CASES[kind](*sizes)))
        return 0
    holds = True
    for name in SIDES:
        sizes = ((given.batch, None), (given.batch, given.chunk), (given.chunk, None))
        whole, chunked, small = (
            in_a_process("memory", name, *size, MALLOC_MMAP_THRESHOLD_="65536") for size in sizes
        )
        whole_s, chunked_s = in_a_process("time", name, *sizes[1], given.rounds)
        slower, more = chunked_s / whole_s, chunked - small
        print(
            f"{name}: batch {given.batch} whole {whole_s:.2f} s CPU, {whole:.0f} MiB; in chunks of"
            f" {given.chunk} {chunked_s:.2f} s, {chunked:.0f} MiB; {slower:.2f} times the time,"
            f" {more:+.0f} MiB of a batch of {given.chunk} ({small:.0f} MiB)",
            flush=True,
        )
        if name.startswith("vlkd"):
            holds = holds and slower <= MOST_TIME and more <= SLACK * small
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
