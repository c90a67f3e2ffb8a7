"""Whether the distillers of a recipe connect outputs that exist, and what they train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import (
    LAYER,
    MAIN_VIEW,
    Address,
    Arrow,
    Side,
    SideError,
    arrow_of,
    modality_of,
    pictures_of,
    text_names,
)
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.modality import FACTS, PAIR, is_named
from vlkd_cli.recipe.objectives import (
    check_negatives,
    check_nested,
    check_objective,
    check_positives,
    listed,
)
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.positions import check_positions
from vlkd_cli.recipe.schema import DistillerSpec, Recipe, TowerSpec


class DistillerArrow(NamedTuple):
    """A distiller with its arrow and its path in the recipe."""

    spec: DistillerSpec
    arrow: Arrow
    path: Path


def arrows_of(recipe: Recipe) -> list[DistillerArrow]:
    """The arrows of the distillers that have one; wrong ones are reported by `check_arrows`."""
    found = []
    for number, spec in enumerate(recipe.distillers):
        try:
            found.append(DistillerArrow(spec, arrow_of(recipe, spec), ("distillers", number)))
        except (SideError, RecipeError):
            continue
    return found


def check_arrows(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the distillers' sides, and of what they train or do not train."""
    if not recipe.distillers:
        return
    if recipe.data is None:
        yield Problem(
            (),
            "key 'data' is missing: the distillers need samples. `data: {reader: shapes}` renders"
            " some.",
        )
    problems = []
    for number, spec in enumerate(recipe.distillers):
        problems += _check_distiller(recipe, spec, ("distillers", number))
    yield from problems
    learners = {name for name, tower in recipe.towers.items() if learns(tower)}
    if not learners:
        yield Problem(
            ("towers",),
            "every tower is frozen, so there is nothing to train. Give one `train: all` or `train:"
            " head`.",
        )
    elif not problems:
        yield from _check_gradients(recipe, arrows_of(recipe), learners)


def learns(tower: TowerSpec) -> bool:
    """Whether a tower has parameters that are trained."""
    return tower.follows is None and tower.train != "none"


def _check_distiller(recipe: Recipe, spec: DistillerSpec, path: Path) -> list[Problem]:
    try:
        arrow = arrow_of(recipe, spec)
    except SideError as error:
        return [Problem((*path, error.side), f"{error}.")]
    except RecipeError as error:
        return [Problem((*path, "name"), str(error))]
    problems: list[Problem] = []
    calls = [*arrow.calls, *([] if arrow.episode is None else [arrow.episode])]
    for side in ("student", "teacher"):
        addresses = [address for call in calls for address in listed(getattr(call, side))]
        # Of the pictures of one input the last is checked: what is wrong with it is one line.
        addresses.sort(key=lambda address: address.picture)
        for address in {address._replace(picture=1): address for address in addresses}.values():
            problems += _check_address(recipe, address, (*path, side))
    for address in arrow.negatives:
        problems += _check_address(recipe, address, (*path, "negatives"))
    return list(dict.fromkeys(problems)) or [
        *check_objective(recipe, spec, arrow, path),
        *check_negatives(recipe, spec, arrow, path),
        *check_nested(recipe, spec, arrow, path),
        *check_positives(spec, path),
        *check_positions(recipe, arrow, path),
    ]


def _check_address(recipe: Recipe, address: Address, path: Path) -> Iterator[Problem]:
    if address.tower not in recipe.towers:
        guess = did_you_mean(address.tower, recipe.towers)
        yield Problem(
            path, f"no tower '{address.tower}'.{guess} Towers: {', '.join(recipe.towers)}."
        )
        return
    yield from _check_output(recipe, address, path)
    if recipe.data is not None:
        yield from _check_input(recipe, address, path)


def _check_output(recipe: Recipe, address: Address, path: Path) -> Iterator[Problem]:
    tower = recipe.towers[address.tower]
    tower = recipe.towers.get(tower.follows or "", tower)
    # Which heads a run has is known once its checkpoint is open.
    heads = list(tower.all_heads)
    outputs = ["backbone", "tokens", "head", *(head for head in heads if head != "head")]
    if LAYER.fullmatch(address.output):
        modality = modality_of(recipe.towers, address.tower)
        if modality is not None and modality not in PAIR:
            yield Problem(
                path,
                f"tower '{address.tower}' reads {FACTS[modality].plural}, whose layers are not"
                f" read one by one. Name '{address.tower}' or '{address.tower}.tokens'.",
            )
        return
    if address.output not in outputs and tower.run is None:
        guess = did_you_mean(address.output, outputs)
        yield Problem(
            path,
            f"tower '{address.tower}' has no output '{address.output}'.{guess} Outputs:"
            f" {', '.join(outputs)}.",
        )


def _check_input(recipe: Recipe, address: Address, path: Path) -> Iterator[Problem]:
    data, name = recipe.data, address.input
    assert data is not None
    texts = text_names(data)
    modality = modality_of(recipe.towers, address.tower)
    takes_names = is_named(modality)
    if name != MAIN_VIEW and name not in data.views and name not in texts:
        known = [*data.views, *(texts if takes_names else [])]
        what = "view or text" if texts and takes_names else "view"
        listing = f"Known: {', '.join(known)}." if known else "Name it under data.views."
        yield Problem(path, f"no {what} '{name}'.{did_you_mean(name, known)} {listing}")
        return
    if name in texts and name not in data.views:
        if modality is not None and not takes_names:
            yield Problem(
                path,
                f"'{name}' is a text of the samples, and tower '{address.tower}' reads"
                f" {FACTS[modality].plural}. Name a view.",
            )
        return
    pictures = pictures_of(data, name)
    if takes_names and (pictures > 1 or address.picture > 1):
        yield Problem(
            path,
            f"view '{name}' has {pictures} pictures of each image, and tower '{address.tower}'"
            " reads texts. Give the copies to another view, or read another view.",
        )
    elif address.picture > pictures:
        yield Problem(
            path,
            f"view '{name}' has {pictures} picture{'s' * (pictures > 1)}, and '{address}' is"
            f" beyond. Set copies: {address.picture} there, or write a number up to {pictures}.",
        )


def _check_gradients(
    recipe: Recipe, arrows: list[DistillerArrow], learners: set[str]
) -> Iterator[Problem]:
    """Calls from which nothing learns, and towers that learn from nothing."""
    used: set[str] = set()
    taught: set[str] = set()
    teaches: dict[str, list[str]] = {}
    for spec, arrow, path in arrows:
        used |= {a.tower for a in (*arrow.addresses(), *arrow.episode_addresses())}
        one_way = attributes_of("distiller", spec.name).get("direction") == "one_way"
        for call in arrow.calls:
            students, teachers = _towers(call.student), _towers(call.teacher)
            reached = (students if one_way else students | teachers) & learners
            taught |= reached | ({address.tower for address in arrow.negatives} & learners)
            if not reached:
                yield Problem(*_nothing_learns(recipe, spec, path, students))
                break
            for name in teachers & learners if one_way else ():
                teaches.setdefault(name, []).append(spec.name)
    for name in sorted(learners - used):
        yield Problem(
            ("towers", name),
            "is trainable, but no distiller uses it. Set train: none, or add a distiller with its"
            " address.",
        )
    for name in sorted((learners & used) - taught):
        distillers = " and ".join(f"'{each}'" for each in dict.fromkeys(teaches.get(name, ())))
        as_teacher = f": it is only the teacher of {distillers}, which detaches it" * bool(
            distillers
        )
        yield Problem(
            ("towers", name),
            f"would be trained, but gets no gradient{as_teacher}. Set train: none.",
        )


def _nothing_learns(
    recipe: Recipe, spec: DistillerSpec, path: Path, students: set[str]
) -> tuple[Path, str]:
    followers = sorted(name for name in students if recipe.towers[name].follows is not None)
    if followers:
        text = (
            f"tower '{followers[0]}' follows another and is not trained itself, so it cannot be the"
            " student."
        )
        return (*path, "student"), text
    names = " and ".join(sorted(students))
    return path, f"it trains nothing: its student '{names}' is frozen."


def _towers(side: Side | None) -> set[str]:
    return {address.tower for address in listed(side)}
