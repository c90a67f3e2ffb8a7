"""Bring the data of the recipes `tune_text`, `tune_image`, `tune_clip`, `tune_open_clip`,
`tune_mesh` and `synthesize` into the places where they look for it, below `data/`.

    python docs/prepare_tuning.py SOURCE data

SOURCE holds `sts-train.csv` and `sts-dev.csv` (STS Benchmark), a zip of Omniglot's characters,
word vectors (glove*.txt), a folder of photos with `train.tsv` and `val.tsv`, a folder in BEIR's
format, and a folder `meshes` with `index.csv` (columns file and class), at any depth.
"""

from __future__ import annotations

import csv
import math
import random
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def found(source: Path, pattern: str) -> Path:
    """The first file of this name below the source."""
    files = sorted(source.rglob(pattern))
    if not files:
        raise SystemExit(f"{source} holds no {pattern}.")
    return files[0]


def pairs(source: Path, data: Path) -> None:
    """Sentence pairs as a table with a header, and the folder that suite `sts` reads."""
    train = found(source, "*untokeni*/sts-train.csv").read_text(encoding="utf-8").splitlines()
    # genre, file, year, number, score, first, second; some lines name their source behind these.
    rows = ["\t".join(line.split("\t")[4:7]) for line in train]
    (data / "pairs.tsv").write_text("\n".join(["score\tfirst\tsecond", *rows]) + "\n")
    folder = data / "sentences" / "STS" / "STSBenchmark"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(found(source, "*untokeni*/sts-dev.csv"), folder)
    shutil.copy(found(source, "glove*.txt"), data / "glove.txt")


def characters(source: Path, data: Path) -> None:
    """A folder for each character; every fourth one, in alphabetical order, is held out."""
    with zipfile.ZipFile(found(source, "images_background*.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        classes = sorted({name.rpartition("/")[0] for name in names})
        for name in names:
            folder, _, file = name.rpartition("/")
            part = "test" if classes.index(folder) % 4 == 3 else "train"
            target = data / "characters" / part / "-".join(folder.split("/")[-2:])
            target.mkdir(parents=True, exist_ok=True)
            (target / file).write_bytes(archive.read(name))


def photos(source: Path, data: Path) -> None:
    """Photos with five captions each."""
    folder = next(path.parent for path in sorted(source.rglob("captions.txt")))
    shutil.copytree(folder, data / "photos", dirs_exist_ok=True)
    shutil.copy(found(source, "mobilenet_v2*.safetensors"), data / "mobilenet_v2.safetensors")


def meshes(source: Path, data: Path) -> None:
    """Models and a table of them; every third one of a class is held out."""
    index = found(source, "meshes/index.csv")
    rows = list(csv.DictReader(index.read_text(encoding="utf-8").splitlines()))
    counts: Counter[str] = Counter()
    lines = ["file,class,split"]
    for row in rows:
        part = "test" if counts[row["class"]] % 3 == 2 else "train"
        counts[row["class"]] += 1
        lines.append(f"{row['file']},{row['class']},{part}")
        target = data / "meshes" / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(index.parent / row["file"], target)
    (data / "meshes" / "models.csv").write_text("\n".join(lines) + "\n")


def turned_meshes(data: Path) -> None:
    """The same models, each turned at random about the vertical axis."""
    angles = random.Random(0)
    target = data / "turned_meshes"
    shutil.copytree(data / "meshes", target, dirs_exist_ok=True)
    for row in csv.DictReader((target / "models.csv").read_text().splitlines()):
        file, angle = target / row["file"], angles.uniform(0, 2 * math.pi)
        across, along = math.cos(angle), math.sin(angle)
        lines = []
        for line in file.read_text().splitlines():
            if line.startswith("v "):
                x, y, z = map(float, line.split()[1:4])
                line = f"v {across * x + along * z:.6f} {y:.6f} {across * z - along * x:.6f}"
            lines.append(line)
        file.write_text("\n".join(lines) + "\n")


def passages(source: Path, data: Path) -> None:
    """Queries, passages and judgments."""
    folder = found(source, "corpus.jsonl").parent
    shutil.copytree(folder, data / folder.name, dirs_exist_ok=True)


def main(words: Sequence[str]) -> None:
    source, data = map(Path, words)
    data.mkdir(parents=True, exist_ok=True)
    for prepare in (pairs, characters, photos, meshes, passages):
        prepare(source, data)
    turned_meshes(data)


if __name__ == "__main__":
    main(sys.argv[1:])
