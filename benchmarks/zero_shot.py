"""Zero-shot classification of JPEG files, against clip_benchmark's own functions with the same
weights, prompts and batch size.

    python benchmarks/zero_shot.py [--images 200] [--model ViT-B-32] [--precision fp32] [--rounds 1]
    [--threads 1]

The peer's model is loaded as its command loads it, and its classifier and image loops are called as
its evaluate does (its accuracy function stops at NumPy 2.4, so the answers are taken from its
scores). Exits with 1 where vlkd takes longer, or the two disagree on more than 1 in 50 images in
fp32.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from encoders import PRECISIONS, load_sides
from forked import compare, report
from PIL import Image
from threadpoolctl import threadpool_limits

from vlkd_cli.data.readers.classification import Classification
from vlkd_cli.features.encode import class_features, embed_images, normalize
from vlkd_cli.features.subject import Subject

CLASSES = 10
TEMPLATES = ["a photo of a {c}.", "a picture showing a {c}.", "one {c}."]


def write_images(folder: Path, count: int) -> None:
    """JPEG photos of noise in 256 x 256, one folder per class."""
    random = np.random.default_rng(0)
    for number in range(count):
        own = folder / f"kind {number % CLASSES}"
        own.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
            (256, 256), Image.Resampling.BICUBIC
        )
        buffer = io.BytesIO()
        coarse.save(buffer, "JPEG", quality=90)
        (own / f"{number:05}.jpg").write_bytes(buffer.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = tempfile.TemporaryDirectory()
    sides, photos = load_sides(given.model, Path(folder.name)), Path(folder.name) / "photos"
    write_images(photos, given.images)
    names = [f"kind {number}" for number in range(CLASSES)]
    chosen: dict[str, torch.Tensor] = {}

    def ours() -> Callable[[], object]:
        reader = Classification(path=str(photos))
        subject = Subject(sides.image, sides.text, precision=given.precision)

        def work() -> None:
            own = [[template.replace("{c}", name) for template in TEMPLATES] for name in names]
            features = normalize(embed_images(subject, reader))
            chosen["vlkd"] = (features @ class_features(subject, own, "normalize").T).argmax(1)

        return work

    def peer() -> Callable[[], object]:
        from clip_benchmark.metrics.zeroshot_classification import (
            run_classification,
            zero_shot_classifier,
        )
        from torchvision.datasets import ImageFolder

        loader = torch.utils.data.DataLoader(ImageFolder(photos, sides.transform), batch_size=64)
        amp = given.precision != "fp32"

        def work() -> None:
            with torch.no_grad():
                classifier = zero_shot_classifier(
                    sides.model, sides.tokenizer, names, TEMPLATES, "cpu", amp=amp
                )
                logits, _ = run_classification(sides.model, classifier, loader, "cpu", amp=amp)
            chosen["peer"] = logits.argmax(1)

        return work

    with threadpool_limits(given.threads), folder:
        ours()(), peer()()
        same = (chosen["vlkd"] == chosen["peer"]).double().mean().item()
        fine = report(
            f"zero-shot {given.images} images, {given.model}, {given.precision}",
            *compare(ours, peer, given.rounds),
            faster=1,
        )
    print(f"same answer on {same:.1%} of the images")
    return 0 if fine and (same >= 0.98 or given.precision != "fp32") else 1


if __name__ == "__main__":
    sys.exit(main())
