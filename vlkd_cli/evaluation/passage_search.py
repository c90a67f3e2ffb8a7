"""Search a collection of any size: chunks of passages are dealt to the ranks, embedded once,
cached on disk, and scored at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.distributed.collectives import gather_objects, gather_without_grad
from vlkd_cli.distributed.runtime import local_rank, rank, world_size
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.features.encode import encode_texts, normalize, project_texts
from vlkd_cli.features.store import FeatureStore
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.topk import TopK


class Searched(Protocol):
    """Passages by position: `Corpus`, or a `TextsById`."""

    @property
    def keys(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def texts(
        self, size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, list[str]]]: ...


def fingerprint_of(corpus_digest: str, *, title: bool, limit: int | None = None) -> str:
    """What passages are called that a file of this sha256 holds, as `search` takes it."""
    return f"{corpus_digest}-{title}-{limit}"


def search(
    subject: Subject,
    queries: Tensor,
    corpus: Searched,
    depth: int,
    *,
    similarity: Literal["cosine", "dot"] = "cosine",
    prompt: str = "",
    chunk_size: int = 16384,
    projected: bool = True,
    fingerprint: str,
) -> tuple[Tensor, NDArray[np.int64]]:
    """The best passages of every query, the same on every rank and for any number of ranks.

    With a cache folder the features of the backbone stay on disk, and whatever was embedded before
    an interruption is not embedded again; without one each chunk is forgotten once it is scored.
    Either way a rank holds one chunk.

    Args:
        queries: `[Q, D]`, un-normalized.
        depth: length of the lists.
        prompt: put before every passage.
        fingerprint: digest of the corpus file and of what chooses and composes its texts.

    Returns:
        Scores and passage keys `[Q, min(depth, passages)]`, by score, then id, descending.
    """
    best = TopK(_comparable(queries, similarity).to(subject.device), depth)
    store = _open_store(subject, corpus, fingerprint, prompt)
    problem = ""
    try:
        for chunk, features in _chunks(subject, corpus, chunk_size, prompt, store):
            rows = project_texts(subject, features) if projected else features
            keys = torch.from_numpy(
                corpus.keys[chunk * chunk_size : chunk * chunk_size + len(rows)]
            )
            best.add(_comparable(rows, similarity), keys)
    except UserError as error:
        problem = str(error)
    # Ranks that continue would wait for one that has stopped.
    _fail_together(problem)
    return merge(best, depth, len(corpus))


def stored_passages(
    subject: Subject, corpus: Searched, *, fingerprint: str, chunk_size: int = 16384
) -> FeatureStore:
    """Features of the backbone of all passages, in the cache folder of the subject: those that
    `search` left there, and the others computed.

    Raises:
        DataError: this machine lacks some, because the cache folder is not shared by all.
    """
    store = _open_store(subject, corpus, fingerprint, "")
    assert store is not None and store.folder is not None
    problem = ""
    try:
        for _ in _chunks(subject, corpus, chunk_size, "", store):
            pass
    except UserError as error:
        problem = str(error)
    _fail_together(problem)
    whole = FeatureStore(store.folder, len(corpus), store.width, verify=False)
    if not whole.done.all():
        raise DataError(
            f"{store.folder} lacks passages that another machine encoded. Set train.cache_dir to a"
            " folder that all machines share."
        )
    return whole


def _chunks(
    subject: Subject, corpus: Searched, size: int, prompt: str, store: FeatureStore | None
) -> Iterator[tuple[int, Tensor]]:
    """This rank's chunks with their features."""
    own = range(rank(), -(-len(corpus) // size), world_size())
    stored = {
        chunk
        for chunk in own
        if store is not None and store.done[chunk * size : (chunk + 1) * size].all()
    }
    for chunk in sorted(stored):
        assert store is not None
        yield chunk, torch.from_numpy(np.array(store.table()[chunk * size : (chunk + 1) * size]))
    missing = set(own) - stored
    for chunk, texts in corpus.texts(size, missing.__contains__) if missing else ():
        features = encode_texts(subject, [prompt + text for text in texts])
        if store is not None:
            store.write(np.arange(chunk * size, chunk * size + len(texts)), features.numpy())
        yield chunk, features


def _open_store(
    subject: Subject, corpus: Searched, fingerprint: str, prompt: str
) -> FeatureStore | None:
    if subject.cache is None:
        return None
    assert subject.text is not None
    parts = (subject.text.digest(), fingerprint, prompt, subject.precision)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    width = subject.text.feature_width
    folder = Path(subject.cache) / "passages" / f"{key}-{width}"
    # The first rank of each machine makes the files before the others look; none waits for one that
    # could not.
    store, problem = None, ""
    if local_rank() == 0:
        try:
            store = FeatureStore(folder, len(corpus), width)
        except UserError as error:
            problem = str(error)
    _fail_together(problem)
    return store or FeatureStore(folder, len(corpus), width, verify=False)


def _fail_together(problem: str) -> None:
    """Raise on every rank what any rank met; every rank must call it."""
    for message in gather_objects(problem):
        if message:
            raise DataError(message)


def _comparable(features: Tensor, similarity: str) -> Tensor:
    features = torch.nan_to_num(features.float())
    return normalize(features) if similarity == "cosine" else features


def merge(best: TopK, depth: int, num_passages: int) -> tuple[Tensor, NDArray[np.int64]]:
    """The ranks' lists as one, `[Q, min(depth, num_passages)]` each, the same on every rank. A
    rank's list is padded to full length with entries that lose against every passage."""
    scores, keys = best.result()
    missing = depth - scores.shape[1]
    scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    keys = torch.nn.functional.pad(keys, (0, missing), value=-1)
    queries = len(scores)
    scores = (
        gather_without_grad(scores).view(-1, queries, depth).transpose(0, 1).reshape(queries, -1)
    )
    keys = gather_without_grad(keys).view(-1, queries, depth).transpose(0, 1).reshape(queries, -1)
    order = keys.argsort(dim=1, descending=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order[:, : min(depth, num_passages)]
    return scores.gather(1, order).cpu(), keys.gather(1, order).cpu().numpy()
