"""Small data where the recipes of fine-tuning for search (`tune_*` and `synthesize`) and
`align/sail` look for them, and what makes the former a matter of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.data_sets import photo, write_photos, write_table
from tests.support.meshes import write_boxes

WORDS = "a plane takes off from the red round circle green square dog cat runs on mat".split()
SENTENCES = [f"a {WORDS[6 + n % 5]} {WORDS[11 + n % 4]} takes off" for n in range(24)]

SMALL: dict[str, list[str]] = {
    "tune_text": ["train.steps=3", "train.batch_size=8"],
    "tune_image": ["train.steps=3", "train.batch_size=16"],
    "tune_clip": ["train.steps=3", "train.batch_size=4", "towers.image.pretrained=false"],
    "tune_open_clip": ["train.steps=3", "train.batch_size=4"],
    "tune_mesh": ["train.steps=3", "train.batch_size=8"],
    "synthesize": [
        "train.steps=3",
        "train.batch_size=8",
        "towers.text.model=data/glove.txt",
        "towers.text.head.width=50",
        "synthesis.relations=4",
        "synthesis.depth=6",
    ],
}
"""Recipe -> settings."""


def settings(recipe: str) -> list[str]:
    """The settings of SMALL as words of a command."""
    return [word for setting in SMALL[recipe] for word in ("--set", setting)]


def write_tuning_data(folder: Path) -> None:
    """Everything below `folder / "data"`, and texts and pictures to encode."""
    data = folder / "data"
    random = np.random.RandomState(0)
    write_table(
        data / "pairs.tsv",
        [(f"{n % 6}", SENTENCES[n], SENTENCES[n - 1]) for n in range(24)],
        header=("score", "first", "second"),
    )
    judged = data / "sentences" / "STS" / "STSBenchmark"
    judged.mkdir(parents=True)
    rows = [
        ("news", "x", "2012", str(n), str(n % 6), SENTENCES[n], SENTENCES[n - 2]) for n in range(12)
    ]
    (judged / "sts-dev.csv").write_text("".join("\t".join(row) + "\n" for row in rows))
    vectors = [
        " ".join([word, *(f"{value:.4f}" for value in random.randn(50))])
        for word in dict.fromkeys(WORDS)
    ]
    (data / "glove.txt").write_text("\n".join(vectors) + "\n")
    for split, first in (("train", 0), ("test", 4)):
        for number in range(first, first + 4):
            write_photos(data / "characters" / split / f"kind{number}", 6)
            photo(number + 17).save(data / "characters" / split / f"kind{number}" / "photo05.jpg")
    for place in ("photos", "flickr8k_mini"):
        names = write_photos(data / place / "images", 8)
        for split, own in (("train", names[:5]), ("val", names[5:])):
            captions = [
                (f"images/{name}", SENTENCES[n + k]) for n, name in enumerate(own) for k in (0, 9)
            ]
            write_table(data / place / f"{split}.tsv", captions)
    write_boxes(data / "meshes", 6)
    write_table(
        data / "meshes" / "models.csv",
        [
            (f"{kind}/{n:02}.off", kind, "train" if n < 4 else "test")
            for kind in ("flat_slab", "tall_post")
            for n in range(6)
        ],
        header=("file", "class", "split"),
        sep=",",
    )
    write_boxes(folder / "models", 3)
    write_collection(data / "cranfield")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES) + "\n")
    write_photos(folder / "pictures", 6, stem="")


def write_collection(folder: Path) -> None:
    """A BEIR folder with judgments for testing."""
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", SENTENCES), ("queries", SENTENCES[::3])):
        lines = [f'{{"_id": "{n}", "text": "{text}"}}\n' for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    judged = [f"{n}\t{3 * n}\t1\n" for n in range(8)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
