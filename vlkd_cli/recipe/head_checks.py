"""Whether the heads of a recipe's towers read what exists, are read, and get the positions they ask
for; and whether masks and the towers that use them go together."""

from __future__ import annotations

from collections.abc import Iterator

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.recipe.address import MAIN_VIEW, RESERVED, Address, pictures_of
from vlkd_cli.recipe.arrow_checks import arrows_of
from vlkd_cli.recipe.masks import mask_of, mask_varies
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.objectives import kind_of
from vlkd_cli.recipe.schema import HeadSpec, Recipe, TowerSpec

SOURCES = ("input", "backbone", "tokens")
"""What a head may read in addition to other heads."""


def check_heads(recipe: Recipe) -> Iterator[Problem]:
    """Problems of every tower's heads and masks."""
    addresses = [
        address
        for _, arrow, _ in arrows_of(recipe)
        for address in (*arrow.addresses(), *arrow.episode_addresses())
    ]
    for name, tower in recipe.towers.items():
        own = [address for address in addresses if address.tower == name]
        yield from _check_masks(recipe, name, tower, own)
        if tower.follows is not None:
            continue
        followers = {key for key, other in recipe.towers.items() if other.follows == name}
        read = [a for a in addresses if a.tower == name or a.tower in followers]
        yield from _check_graph(recipe, name, tower)
        yield from _check_use(recipe, name, tower, read)
    yield from _check_unused_masks(recipe, addresses)


def sources_of(head: HeadSpec) -> list[tuple[str, int | None]]:
    """What a head reads, each with the number of its picture, if it names one."""
    reads = [head.reads] if isinstance(head.reads, str) else head.reads
    found: list[tuple[str, int | None]] = []
    for source in reads:
        name, dot, number = source.partition(".")
        # What is not a number is reported like one that is too small.
        found.append((name, (int(number) if number.isdecimal() else 0) if dot else None))
    return found


def head_path(tower: TowerSpec, path: Path, head: str) -> Path:
    """Where a head is written."""
    short = head == "head" and tower.head is not None
    return (*path, "head") if short else (*path, "heads", head)


def _check_graph(recipe: Recipe, name: str, tower: TowerSpec) -> Iterator[Problem]:
    """Names, sources and cycles."""
    path: Path = ("towers", name)
    heads = tower.all_heads
    if tower.head is not None and "head" in tower.heads:
        yield Problem(
            (*path, "heads", "head"), "is written twice: here and as `head:`. Remove one."
        )
    for key, head in heads.items():
        key_path = head_path(tower, path, key)
        if key in RESERVED or not key.isidentifier():
            yield Problem(
                key_path,
                "a head's name is made of letters, digits and underscores and is none of"
                f" {', '.join(RESERVED)}.",
            )
        for source, number in sources_of(head):
            known = [*SOURCES, *(other for other in heads if other != key)]
            if number is not None and number < 1:
                yield Problem(
                    (*key_path, "reads"), f"pictures count from 1: write {source}.1 for the first."
                )
            if source not in known:
                guess = did_you_mean(source, known)
                itself = " A head does not read itself." if source == key else ""
                yield Problem(
                    (*key_path, "reads"),
                    f"tower '{name}' has no '{source}' to read.{guess}{itself} Known:"
                    f" {', '.join(known)}.",
                )
    cycle = _cycle(heads)
    for key, head in heads.items() if cycle is None else ():
        kinds = {source: kind_of(recipe, Address(name, source)) for source, _ in sources_of(head)}
        if {"rows", "positions"} <= set(kinds.values()):
            joined = " and ".join(f"'{source}' ({kind})" for source, kind in kinds.items())
            yield Problem(
                (*head_path(tower, path, key), "reads"),
                f"joins {joined}, which have different lengths. Read outputs of one kind.",
            )
    if cycle is not None:
        yield Problem(
            (*head_path(tower, path, cycle[0]), "reads"),
            f"heads read each other in a circle: {' reads '.join([*cycle, cycle[0]])}. Let one read"
            " the backbone.",
        )


def _cycle(heads: dict[str, HeadSpec]) -> list[str] | None:
    """Heads of which each reads the next and the last the first, or None."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str] | None:
        if name in way:
            return way[way.index(name) :]
        if name in done or name not in heads:
            return None
        for source, _ in sources_of(heads[name]):
            if source != name and (found := walk(source, [*way, name])) is not None:
                return found
        done.add(name)
        return None

    return next((found for name in heads if (found := walk(name, [])) is not None), None)


def _reached(heads: dict[str, HeadSpec], outputs: set[str]) -> set[str]:
    """The outputs and every head that they read, directly or through others."""
    reached, left = set(outputs), list(outputs)
    while left:
        head = heads.get(left.pop())
        for source, _ in sources_of(head) if head is not None else ():
            if source not in reached:
                reached.add(source)
                left.append(source)
    return reached


def _check_use(
    recipe: Recipe, name: str, tower: TowerSpec, read: list[Address]
) -> Iterator[Problem]:
    """Heads that nothing reads, that ask for positions there are none of, or for pictures beyond a
    view's."""
    heads, path = tower.all_heads, ("towers", name)
    outputs = {address.output for address in read}
    if read:
        # A suite projects with the head called head.
        reached = _reached(heads, outputs | ({"head"} if recipe.evals else set()))
        for key in heads:
            if key not in reached and key not in RESERVED:
                yield Problem(
                    head_path(tower, path, key),
                    f"nothing reads it. Write '{name}.{key}' in a distiller, or remove it."
                    if key != "head"
                    else f"nothing reads it. Write '{name}' in a distiller, or remove it.",
                )
    masked = any(mask_of(recipe.data, address.input) is not None for address in read)
    for key, head in heads.items():
        key_path = head_path(tower, path, key)
        if head.at != "all" and read:
            if kind_of(recipe, Address(name, key)) == "rows":
                yield Problem(
                    (*key_path, "at"), "has no effect on rows. Let the head read tokens or input."
                )
            elif not masked:
                yield Problem(
                    (*key_path, "at"),
                    f"no view that tower '{name}' reads has a mask. Add `mask:` to it.",
                )
        for source, number in sources_of(head):
            for address in read:
                pictures = pictures_of(recipe.data, address.input)
                if key in _reached(heads, {address.output}) and (number or 1) > pictures:
                    yield Problem(
                        (*key_path, "reads"),
                        f"'{source}.{number}' is beyond the {pictures}"
                        f" picture{'s' * (pictures > 1)} of view '{address.input}'.",
                    )
                    break


def _check_masks(
    recipe: Recipe, name: str, tower: TowerSpec, read: list[Address]
) -> Iterator[Problem]:
    path: Path = ("towers", name, "masks")
    if tower.masks == "none" or not read:
        return
    views = {address.input: mask_of(recipe.data, address.input) for address in read}
    masked = {view: spec for view, spec in views.items() if spec is not None}
    if not masked:
        yield Problem(path, "has no effect: no view that the tower reads has a mask.")
    for view, spec in masked.items():
        if tower.masks in ("drop", "complement") and mask_varies(spec):
            yield Problem(
                path,
                f"'{tower.masks}' needs a mask that hides the same number of positions in every"
                f" picture; that of view '{view}' varies. Set masks: replace, or give the mask a"
                " fixed number.",
            )


def _check_unused_masks(recipe: Recipe, addresses: list[Address]) -> Iterator[Problem]:
    data = recipe.data
    if data is None or not addresses:
        return
    for name in (MAIN_VIEW, *data.views):
        if mask_of(recipe.data, name) is None:
            continue
        readers = [recipe.towers[a.tower] for a in addresses if a.input == name]
        followed = [recipe.towers.get(tower.follows or "", tower) for tower in readers]
        selects = any(head.at != "all" for tower in followed for head in tower.all_heads.values())
        if not selects and all(tower.masks == "none" for tower in readers):
            key_path = ("data", "augment") if name == MAIN_VIEW else ("data", "views", name)
            yield Problem(
                (*key_path, "mask"),
                "no tower uses it. Set `masks:` of a tower that reads this view, or `at:` of one of"
                " its heads.",
            )
