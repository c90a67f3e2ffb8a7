"""Zero-shot classification of JPEG files, against clip_benchmark's own functions with the same weights, prompts and batch size.

    python benchmarks/zero_shot.py [--images 400] [--precision fp32] [--rounds 1] [--threads 1]

The peer's classifier and image loops are called as its evaluate does (its accuracy function stops at NumPy 2.4, so the answers are taken
from its scores). Exits with 1 where vlkd takes longer, or the two disagree on more than 1 in 50 images in fp32.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import compare, report
from PIL import Image
from threadpoolctl import threadpool_limits

from vlkd_cli.data.readers.classification import Classification
from vlkd_cli.evaluation.encode import embed_images, normalise
from vlkd_cli.evaluation.suite import Subject
from vlkd_cli.evaluation.suites.zero_shot import class_features
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble

CLASSES = 10
TEMPLATES = ["a photo of a {c}.", "a picture showing a {c}.", "one {c}."]
VISION = {"image_size": 224, "layers": 12, "width": 192, "heads": 3, "patch_size": 32}


def write_images(folder: Path, count: int) -> None:
    """JPEG photos of noise in 256 x 256, one folder per class."""
    random = np.random.default_rng(0)
    for number in range(count):
        own = folder / f"kind {number % CLASSES}"
        own.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        coarse.save(buffer, "JPEG", quality=90)
        (own / f"{number:05}.jpg").write_bytes(buffer.getvalue())


class Peer:
    """The same encoders with the two methods that clip_benchmark calls."""

    def __init__(self, image: Any, text: Any) -> None:
        self.image, self.text = image.encoder, text.encoder

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.image(images)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text({"input_ids": tokens})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    image = assemble("image", TowerSpec.model_validate({"builder": "openclip", "config": VISION}))
    text = assemble("text", TowerSpec.model_validate({"builder": "openclip", "config": {"layers": 4, "width": 192, "heads": 3}}))
    image.eval(), text.eval()
    folder = tempfile.TemporaryDirectory()
    write_images(Path(folder.name), given.images)
    names = [f"kind {number}" for number in range(CLASSES)]
    chosen: dict[str, torch.Tensor] = {}

    def ours() -> Callable[[], object]:
        reader = Classification(path=folder.name)
        subject = Subject(image, text, precision=given.precision)

        def work() -> None:
            own = [[template.replace("{c}", name) for template in TEMPLATES] for name in names]
            features = normalise(embed_images(subject, reader))
            chosen["vlkd"] = (features @ class_features(subject, own, "normalise").T).argmax(1)

        return work

    def peer() -> Callable[[], object]:
        import open_clip
        from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
        from torchvision.datasets import ImageFolder

        transform = open_clip.image_transform(224, is_train=False)
        loader = torch.utils.data.DataLoader(ImageFolder(folder.name, transform), batch_size=64)
        model, tokenizer, amp = Peer(image, text), open_clip.SimpleTokenizer(), given.precision != "fp32"

        def work() -> None:
            with torch.no_grad():
                classifier = zero_shot_classifier(model, tokenizer, names, TEMPLATES, "cpu", amp=amp)
                logits, _ = run_classification(model, classifier, loader, "cpu", amp=amp)
            chosen["peer"] = logits.argmax(1)

        return work

    with threadpool_limits(given.threads), folder:
        ours()(), peer()()
        same = (chosen["vlkd"] == chosen["peer"]).double().mean().item()
        fine = report(f"zero-shot {given.images} images, {given.precision}", *compare(ours, peer, given.rounds), faster=1)
    print(f"same answer on {same:.1%} of the images")
    return 0 if fine and (same >= 0.98 or given.precision != "fp32") else 1


if __name__ == "__main__":
    sys.exit(main())
