"""Recall, mean and median rank in both directions for 5,000 images and 25,000 captions, against clip_benchmark's own recall function.

    python benchmarks/retrieval.py [--images 5000] [--rounds 1] [--threads 1]

The peer is timed from embeddings to recalls (as its zeroshot_retrieval.evaluate does after encoding), at its batch size of 64. Exits with 1
where vlkd is not 20 times faster and 40 times smaller, or a recall differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from forked import compare, report
from torch import Tensor

from vlkd_cli.evaluation.metrics import rank_scores, ranks_of_own

KS = (1, 5, 10)


def features(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-length features of images and of five captions each, and each caption's image."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(images).repeat_interleave(5)
    image = torch.randn(images, 512, generator=generator)
    text = 0.12 * image[own] + torch.randn(len(own), 512, generator=generator)
    return torch.nn.functional.normalize(image), torch.nn.functional.normalize(text), own


def ours(image: Tensor, text: Tensor, own: Tensor) -> dict[str, float]:
    first = torch.arange(len(image)) * 5
    found = {}
    for name, ranks in (("text", ranks_of_own(image, text, first, first + 5)), ("image", ranks_of_own(text, image, own, own + 1))):
        found.update({f"{name}@{k}": recall for k, recall in rank_scores(ranks, KS).recall.items()})
    return found


def peer(image: Tensor, text: Tensor, own: Tensor) -> dict[str, float]:
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = text @ image.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), own] = True
    found = {}
    for k in KS:
        found[f"image@{k}"] = (batchify(recall_at_k, scores, positive, 64, "cpu", k=k) > 0).float().mean().item()
        found[f"text@{k}"] = (batchify(recall_at_k, scores.T, positive.T, 64, "cpu", k=k) > 0).float().mean().item()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    small = features(300)
    assert ours(*small).keys() == peer(*small).keys()
    differ = max(abs(ours(*small)[name] - value) for name, value in peer(*small).items())

    def prepared(work: Callable[..., object]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            inputs = features(given.images)
            return lambda: work(*inputs)

        return prepare

    own, other = compare(prepared(ours), prepared(peer), given.rounds)
    fine = report(f"retrieval {given.images} x {5 * given.images}", own, other, faster=20, smaller=40)
    print(f"largest difference of a recall on 300 images: {differ:.1e}")
    return 0 if fine and differ < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
