"""A vocabulary of word pieces learned from words and their counts: the same for the same counts, in
any process."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

CONTINUES = "##"
"""How a piece begins that continues a word."""
MAX_LETTERS = 100
"""Longer words are unknown to a WordPiece model whatever its vocabulary, so they teach nothing."""
MAX_WORDS = 100_000
"""Of more words than these, the most frequent decide."""
MAX_ALPHABET = 1000

Pair = tuple[str, str]


def learn_pieces(counts: Mapping[str, int], size: int) -> list[str]:
    """At most `size` pieces: the letters by text, then merged pieces in the order in which they
    were merged.

    The most frequent pair of neighboring pieces is merged first; ties go to the pair that comes
    first by text. Time grows with the number of letters, not with a power of it.

    Args:
        counts: how often each word occurs.

    Source: Sennrich et al., arXiv:1508.07909, algorithm 1, with WordPiece's `##` before pieces that
    continue a word, as the trainer of the library `tokenizers` has it. Differs in breaking ties by
    text; the library's order of ties is that of a hash table, which changes between processes.
    """
    known = [(word, count) for word, count in counts.items() if 0 < len(word) <= MAX_LETTERS]
    known = sorted(known, key=lambda item: (-item[1], item[0]))[:MAX_WORDS]
    alphabet = _alphabet(known, min(size, 2 * MAX_ALPHABET))
    words = [(pieces, count) for word, count in known if set(pieces := _split(word)) <= alphabet]
    return [*sorted(alphabet), *_merges(words, alphabet, size - len(alphabet))]


def _alphabet(words: Sequence[tuple[str, int]], size: int) -> set[str]:
    """The most frequent single letters, those that continue a word apart from those that begin
    one."""
    occurs: Counter[str] = Counter()
    for word, count in words:
        for piece in _split(word):
            occurs[piece] += count
    return set(sorted(occurs, key=lambda piece: (-occurs[piece], piece))[:size])


def _split(word: str) -> list[str]:
    return [word[0], *(CONTINUES + letter for letter in word[1:])]


def _merges(words: list[tuple[list[str], int]], taken: set[str], most: int) -> list[str]:
    counts: dict[Pair, int] = defaultdict(int)
    # Words are added and never removed: a word that lost the pair costs one search.
    words_with: dict[Pair, set[int]] = defaultdict(set)
    for index, (pieces, number) in enumerate(words):
        for pair in itertools.pairwise(pieces):
            counts[pair] += number
            words_with[pair].add(index)
    # Entries go stale as counts change; they are corrected when they come up.
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    found: dict[str, None] = {}
    while queue and len(found) < most:
        count, pair = heapq.heappop(queue)
        if counts[pair] != -count:
            if counts[pair] > 0:
                heapq.heappush(queue, (-counts[pair], pair))
            continue
        merged = pair[0] + pair[1].removeprefix(CONTINUES)
        if merged not in taken:
            found[merged] = None
        made: set[Pair] = set()
        for index in words_with.pop(pair):
            for new in _join(*words[index], pair, merged, counts):
                words_with[new].add(index)
                made.add(new)
        del counts[pair]
        for new in made:
            heapq.heappush(queue, (-counts[new], new))
    return list(found)


def _join(
    pieces: list[str], number: int, pair: Pair, merged: str, counts: dict[Pair, int]
) -> list[Pair]:
    """Merge a pair wherever it is in a word, which occurs `number` times; returns the pairs that
    the merged piece is part of."""
    left, right = pair
    made: list[Pair] = []
    position = -1
    while left in pieces[position + 1 :]:
        position = pieces.index(left, position + 1)
        if position + 1 == len(pieces) or pieces[position + 1] != right:
            continue
        pieces[position : position + 2] = [merged]
        if position > 0:
            before = pieces[position - 1]
            counts[before, left] -= number
            counts[before, merged] += number
            made.append((before, merged))
        if position + 1 < len(pieces):
            after = pieces[position + 1]
            counts[right, after] -= number
            counts[merged, after] += number
            made.append((merged, after))
    return made
