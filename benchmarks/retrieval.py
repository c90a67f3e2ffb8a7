"""Retrieval against clip_benchmark: the whole evaluation of photos with five captions each, and
ranking alone at the size of COCO.

    python benchmarks/retrieval.py [--photos 64] [--model ViT-B-32] [--precision fp32] [--images
    5000] [--rounds 1] [--threads 1]

The whole evaluation goes from files to recalls, as the peer's command does it: its dataset of
Flickr30k's layout, its loader, its evaluate, with the same weights, batches of 64 and precision.
Ranking is timed from embeddings to recalls, with the peer's own functions. Exits with 1 where
vlkd's evaluation takes longer, its ranking is not 20 times faster and 40 times smaller, or a recall
differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from encoders import PRECISIONS, Sides, load_sides
from forked import compare, report
from processor import processor
from threadpoolctl import threadpool_limits
from torch import Tensor
from training_sides import draw_caption, draw_data

from vlkd_cli.evaluation.metrics.ranks import pair_ranks, rank_scores
from vlkd_cli.evaluation.suites.retrieval import Retrieval
from vlkd_cli.features.subject import Subject

KS = (1, 5, 10)
CAPTIONS = 5
TABLE = "captions.csv"


def draw_photos(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEG files with a table in the form of Flickr30k's: a line `image,caption` for each
    caption."""
    folder.mkdir()
    draw_data(folder, count, size=size)
    draw = random.Random(0)
    rows = [
        f"{path.name},{draw_caption(draw)}\n"
        for path in sorted(folder.glob("*.jpg"))
        for _ in range(CAPTIONS)
    ]
    (folder / TABLE).write_text("image,caption\n" + "".join(rows))
    return folder


def evaluate(sides: Sides, folder: Path, precision: str) -> dict[str, float]:
    """The suite `retrieval`, with the name that the peer gives each recall."""
    data = {"reader": "csv", "path": str(folder / TABLE), "image": "image", "caption": "caption"}
    subject = Subject(
        sides.image, sides.text, precision=precision, cache=Path(tempfile.mkdtemp(dir=folder))
    )  # type: ignore[arg-type]
    (result,) = Retrieval(data=data, k=list(KS)).run(subject)
    directions = {"image": "text_to_image", "text": "image_to_text"}
    return {
        f"{name}_retrieval_recall@{k}": result.metrics[f"{way}_R@{k}"]
        for name, way in directions.items()
        for k in KS
    }


def evaluate_peer(sides: Sides, folder: Path, precision: str) -> dict[str, float]:
    """What `clip_benchmark eval --dataset flickr30k` does once the model is loaded."""
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn
    from clip_benchmark.metrics import zeroshot_retrieval

    name = "flickr30k"
    dataset = build_dataset(
        name,
        root=str(folder),
        transform=sides.transform,
        annotation_file=str(folder / TABLE),
        task="zeroshot_retrieval",
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=64, collate_fn=get_dataset_collate_fn(name)
    )
    found: dict[str, float] = zeroshot_retrieval.evaluate(
        sides.model,
        loader,
        sides.tokenizer,
        device="cpu",
        amp=precision != "fp32",
        recall_k_list=list(KS),
    )
    return found


def whole_evaluation(given: argparse.Namespace) -> bool:
    """Time both; whether the floor holds and the recalls are the same."""
    with tempfile.TemporaryDirectory() as name:
        sides = load_sides(given.model, Path(name))
        # Pictures of the model's own size are not resized, so that both towers see the same pixels.
        small = draw_photos(Path(name) / "small", 32, sides.image.input.size_px)  # type: ignore[union-attr]
        ours, theirs = evaluate(sides, small, "fp32"), evaluate_peer(sides, small, "fp32")
        assert ours.keys() == theirs.keys()
        differ = max(abs(ours[name] - value) for name, value in theirs.items())
        photos = draw_photos(Path(name) / "photos", given.photos, (375, 500))
        costs = compare(
            lambda: lambda: evaluate(sides, photos, given.precision),
            lambda: lambda: evaluate_peer(sides, photos, given.precision),
            given.rounds,
        )
    what = (
        f"evaluation of {given.photos} photos with {CAPTIONS} captions each, {given.model},"
        f" {given.precision}"
    )
    fine = report(what, *costs, faster=1)
    print(f"largest difference of a recall on 32 photos: {differ:.1e}")
    return fine and differ < 1e-6


def features(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-length features of images and of five captions each, and each caption's image."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(images).repeat_interleave(CAPTIONS)
    image = torch.randn(images, 512, generator=generator)
    text = 0.12 * image[own] + torch.randn(len(own), 512, generator=generator)
    return torch.nn.functional.normalize(image), torch.nn.functional.normalize(text), own


def rank(image: Tensor, text: Tensor, own: Tensor) -> dict[str, float]:
    both = pair_ranks(image, text, torch.bincount(own))
    found = {}
    for name, ranks in (("text", both.of_texts), ("image", both.of_images)):
        found.update({f"{name}@{k}": recall for k, recall in rank_scores(ranks, KS).recall.items()})
    return found


def rank_peer(image: Tensor, text: Tensor, own: Tensor) -> dict[str, float]:
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = text @ image.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), own] = True
    found = {}
    for k in KS:
        found[f"image@{k}"] = (
            (batchify(recall_at_k, scores, positive, 64, "cpu", k=k) > 0).float().mean().item()
        )
        found[f"text@{k}"] = (
            (batchify(recall_at_k, scores.T, positive.T, 64, "cpu", k=k) > 0).float().mean().item()
        )
    return found


def ranking(given: argparse.Namespace) -> bool:
    """Time both; whether the floors hold and the recalls are the same."""
    small = features(300)
    assert rank(*small).keys() == rank_peer(*small).keys()
    differ = max(abs(rank(*small)[name] - value) for name, value in rank_peer(*small).items())

    def prepared(work: Callable[..., object]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            inputs = features(given.images)
            return lambda: work(*inputs)

        return prepare

    own, other = compare(prepared(rank), prepared(rank_peer), given.rounds)
    fine = report(
        f"ranking {given.images} x {CAPTIONS * given.images}", own, other, faster=20, smaller=40
    )
    print(f"largest difference of a recall on 300 images: {differ:.1e}")
    return fine and differ < 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=int, default=64, help="of the whole evaluation; 0 leaves it out"
    )
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument(
        "--images", type=int, default=5000, help="of ranking alone; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(processor())
    with threadpool_limits(given.threads):
        fine = [
            part(given)
            for part, wanted in ((whole_evaluation, given.photos), (ranking, given.images))
            if wanted
        ]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
