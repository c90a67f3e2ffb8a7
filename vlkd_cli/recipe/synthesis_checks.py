"""What the section `synthesis` of a recipe means together with its towers, judged without opening
any data."""

from __future__ import annotations

from collections.abc import Iterator

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.recipe.address import modality_of
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.modality import FACTS, is_named
from vlkd_cli.recipe.schema import Recipe, SynthesisSpec

BM25 = "bm25"
READER = "passages"


def check_synthesis(recipe: Recipe) -> Iterator[Problem]:
    """Miners and scorers that are not there, and keys without effect."""
    spec = recipe.synthesis
    if spec is None:
        return
    yield from _check_data(spec)
    for number, miner in enumerate(spec.miners):
        path: Path = ("synthesis", "miners", number)
        if miner in spec.miners[:number]:
            yield Problem(path, f"'{miner}' is listed twice. Remove one.")
        elif miner != BM25:
            yield from _check_tower(recipe, miner, path, or_bm25=True)
        elif BM25 in recipe.towers:
            yield Problem(path, "is a miner and a tower of this recipe. Rename the tower.")
    towers = [miner for miner in spec.miners if miner != BM25]
    for number, scorer in enumerate(spec.scorers):
        path = ("synthesis", "scorers", number)
        tower = scorer.keys.get("tower")
        if scorer.name == "tower":
            texts = _text_towers(recipe)
            if tower is not None:
                yield from _check_tower(recipe, tower, (*path, "tower"), or_bm25=False)
            elif len(texts) != 1:
                known = f" Text towers: {', '.join(texts)}." if texts else ""
                yield Problem(path, f"which tower scores? Set `tower:`.{known}")
        if scorer.name == "tower" or ":" in scorer.name:
            towers.append(scorer.name)
    yield from _check_effects(spec, uses_towers=bool(towers))


def _check_data(spec: SynthesisSpec) -> Iterator[Problem]:
    path: Path = ("synthesis", "data")
    if spec.data.get("reader") != READER:
        yield Problem(
            (*path, "reader") if "reader" in spec.data else path,
            f"queries and passages are read by reader '{READER}': {{reader: {READER}, path:"
            " FOLDER}.",
        )
        return
    idle = ["relations", "weight", "name"]
    if spec.positive == "first":
        idle += ["split", "min_grade"]
    for key in idle:
        if spec.data.get(key) is not None:
            judged = key in ("split", "min_grade")
            reason = " with `positive: first`, which reads no judgments" if judged else ""
            yield Problem((*path, key), f"has no effect{reason}. Leave it out.")


def _check_tower(recipe: Recipe, name: object, path: Path, *, or_bm25: bool) -> Iterator[Problem]:
    if not isinstance(name, str) or name not in recipe.towers:
        known = [*_text_towers(recipe), *([BM25] if or_bm25 else [])]
        yield Problem(
            path,
            f"no text tower '{name}'.{did_you_mean(str(name), known)} Known:"
            f" {', '.join(known) or 'none'}.",
        )
        return
    modality = modality_of(recipe.towers, name)
    if modality is not None and not is_named(modality):
        read = FACTS[modality].plural
        yield Problem(path, f"tower '{name}' reads {read}, and passages are texts. Name another.")


def _text_towers(recipe: Recipe) -> list[str]:
    found = {name: modality_of(recipe.towers, name) for name in recipe.towers}
    return [name for name, modality in found.items() if modality is None or is_named(modality)]


def _check_effects(spec: SynthesisSpec, *, uses_towers: bool) -> Iterator[Problem]:
    if spec.similarity != "cosine" and not uses_towers:
        yield Problem(
            ("synthesis", "similarity"), "has no effect: no tower mines or scores. Remove it."
        )
    if spec.seed and spec.sampling == "top":
        yield Problem(("synthesis", "seed"), "has no effect with `sampling: top`. Remove it.")
    found = spec.depth * len(spec.miners)
    needed = spec.relations if spec.positive == "first" else spec.relations - 1
    if needed > found:
        yield Problem(
            ("synthesis", "relations"),
            f"{spec.relations} passages of each query, but the miners find {found}. Raise"
            " synthesis.depth, or lower it.",
        )
