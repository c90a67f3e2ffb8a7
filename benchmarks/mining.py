"""Mining hard negatives among many captions: time and memory of the exact search.

    python benchmarks/mining.py [--captions 100000] [--queries 100000] [--width 512] [--num 4]

Features are random directions around 1,000 centers, so that neighbors are close, as captions are.
Prints CPU seconds, the memory that the search takes in addition to the features, and how many
queries a dense reference on 200 of them agrees with (it must be all).
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
import torch.nn.functional as F

from vlkd_cli.numerics.mining import Rules, mine


def peak_bytes() -> int:
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("captions", 100_000), ("queries", 100_000), ("width", 512), ("num", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(1000, options.width, generator=generator)

    def rows(count: int) -> torch.Tensor:
        near = centers[torch.randint(1000, (count,), generator=generator)]
        return F.normalize(near + torch.randn(count, options.width, generator=generator))

    corpus, queries = rows(options.captions), rows(options.queries)
    positives = [[query % options.captions] for query in range(options.queries)]
    rules = Rules(options.num, 0, 100, relative_margin=0.05, max_score=0.99)
    keys = np.arange(options.captions)
    before, wall, begin = peak_bytes(), time.perf_counter(), time.process_time()
    found = mine(
        queries,
        corpus,
        rules,
        query_keys=np.full(options.queries, -1),
        corpus_keys=keys,
        positives=positives,
    )
    seconds, elapsed = time.process_time() - begin, time.perf_counter() - wall
    extra = peak_bytes() - before
    agree = sum(
        dense(queries[query], corpus, positives[query][0], rules) == found.rows[query].tolist()
        for query in range(0, options.queries, max(options.queries // 200, 1))
    )
    print(
        f"{options.queries:,} queries among {options.captions:,} captions of width {options.width}:"
        f" {seconds:.0f} CPU s ({elapsed:.0f} s), {extra / 2**30:.2f} GiB in addition to"
        f" {(corpus.nbytes + queries.nbytes) / 2**30:.2f} GiB of features; {agree} of"
        f" {len(range(0, options.queries, max(options.queries // 200, 1)))} as a dense search"
    )


def dense(query: torch.Tensor, corpus: torch.Tensor, positive: int, rules: Rules) -> list[int]:
    """The definition, for one query."""
    scores = (corpus.double() @ query.double()).float()
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[order != positive][: rules.stop]
    ceiling = rules.ceiling(scores[positive].double().numpy()[None])[0]
    taken = order[scores[order].double() <= ceiling][: rules.num].tolist()
    return taken + [-1] * (rules.num - len(taken))


if __name__ == "__main__":
    main()
