"""What a distiller asks of the outputs along its arrow: their order, shapes and widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import LAYER, Address, Arrow, Call, Side, modality_of
from vlkd_cli.recipe.contract import Contract, Kind, Output, contract_of, form_for
from vlkd_cli.recipe.masks import mask_of, mask_varies
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.params import REQUIRED, attributes_of, find_method, signature_of
from vlkd_cli.recipe.schema import Component, DistillerSpec, HeadSpec, Recipe, TowerSpec

Use = tuple[Address, Output]
"""An address and what the distiller takes it for."""


NEGATIVE_WIDTH = "D"
"""The letter of the width of distillers that take negatives."""


def check_objective(
    recipe: Recipe, spec: DistillerSpec, arrow: Arrow, path: Path
) -> Iterator[Problem]:
    """Problems of an arrow whose addresses are right, as far as the recipe alone shows them."""
    contract = contract_of(spec.name)
    yield from _check_order(recipe, contract, arrow, path)
    yield from _check_shapes(recipe, spec, contract, arrow, path)
    yield from check_widths(recipe, spec, arrow, path, lambda address: _width(recipe, address))
    yield from _check_prototypes(recipe, spec, arrow, path)
    yield from _check_first_pictures(spec, arrow, path)


def check_widths(
    recipe: Recipe,
    spec: DistillerSpec,
    arrow: Arrow,
    path: Path,
    width_of: Callable[[Address], int | None],
) -> Iterator[Problem]:
    """Outputs of different widths that the distiller compares directly, or that have not one value
    for each picture where pictures are the classes; the first of each call.

    Args:
        width_of: the width of an output, None where it is not known yet.
    """
    contract = contract_of(spec.name)
    classifies = attributes_of("distiller", spec.name).get("classifies_pictures", False)
    for call in arrow.calls:
        seen: dict[str, tuple[Address, int]] = {}
        count = len(listed(call.student))
        negatives = [(address, Output("rows", NEGATIVE_WIDTH)) for address in arrow.negatives]
        taken = [*uses(contract, call), *episode_uses(contract, arrow), *negatives]
        for address, output in taken:
            width = width_of(address)
            if width is None or output.width == "_":
                continue
            if classifies and width != count:
                yield Problem(
                    (*path, "student"),
                    f"distiller '{spec.name}' classifies {count} picture{'s' * (count > 1)}, and"
                    f" {_named(address)} embeds {width} values."
                    f" {_remedy(recipe, address, count)}",
                )
                return
            ours, our_width = seen.setdefault(output.width, (address, width))
            if width != our_width:
                yield Problem(
                    path,
                    f"{_named(address)} embeds {width} values, {_named(ours)} {our_width}, and"
                    f" distiller '{spec.name}' compares them directly."
                    f" {_remedy(recipe, ours, width)}",
                )
                return


def check_nested(
    recipe: Recipe, spec: DistillerSpec, arrow: Arrow, path: Path
) -> Iterator[Problem]:
    """Widths that no sum of objectives can have."""
    widths, key_path = spec.widths, (*path, "widths")
    if widths is None:
        if spec.width_weights is not None:
            yield Problem((*path, "width_weights"), "has no effect without widths. Remove it.")
        return
    if not widths or any(one >= other for one, other in pairwise(widths)):
        yield Problem(key_path, f"{widths} does not ascend. Write the narrowest width first.")
        return
    if spec.width_weights is not None and len(spec.width_weights) != len(widths):
        yield Problem(
            (*path, "width_weights"),
            f"has {len(spec.width_weights)} weights for {len(widths)} widths. Give one for each.",
        )
    if arrow.episode is not None or not all(
        isinstance(side, Address) for call in arrow.calls for side in call
    ):
        yield Problem(
            key_path, f"are of objectives between two outputs, and '{spec.name}' is not one here."
        )
        return
    for address in arrow.sides():
        width = _width(recipe, address)
        if width is not None and widths[-1] > width:
            yield Problem(
                key_path, f"{widths[-1]} is more than the {width} values of {_named(address)}."
            )
            return


def negative_side(call: Call, kind_of: Callable[[Address], object], address: Address) -> str | None:
    """Which side's kind a negative is of, "student" or "teacher"; None: of neither.

    A negative of both kinds, as of two texts, is one of the teacher's: a candidate for the student.

    Args:
        kind_of: the modality of an address.
    """
    for side, addresses in (("teacher", listed(call.teacher)), ("student", listed(call.student))):
        if any(kind_of(own) == kind_of(address) for own in addresses):
            return side
    return None


def check_negatives(
    recipe: Recipe, spec: DistillerSpec, arrow: Arrow, path: Path
) -> Iterator[Problem]:
    """Negatives that the sides cannot be compared with, and settings of negatives without any."""
    if not arrow.negatives:
        if "negatives_of" in spec.keys:
            yield Problem(
                (*path, "negatives_of"),
                "has no effect without negatives. Add `negatives: text@NAME`, or remove it.",
            )
        return
    key_path, call = (*path, "negatives"), arrow.calls[0]
    sides = ", ".join(map(str, arrow.sides()))
    for address in arrow.negatives:
        if address in arrow.sides():
            yield Problem(
                key_path,
                f"'{address}' is what the distiller compares already, so every match would be a"
                " negative. Name another text or view.",
            )
        elif negative_side(call, partial(_modality, recipe), address) is None:
            yield Problem(
                key_path,
                f"'{address}' is of another modality than {sides}. Name texts or pictures that one"
                " of them could be.",
            )
        elif kind_of(recipe, address) not in (None, "rows"):
            yield Problem(key_path, f"'{address}' has positions, and negatives are rows.")


def check_positives(spec: DistillerSpec, path: Path) -> Iterator[Problem]:
    """Weights of positives where only a sample's own pair matches, and two that exclude each
    other."""
    keys = signature_of("distiller", spec.name).key_names()
    if not {"positives", "positive_weight", "grade"} <= set(keys):
        return
    grade, is_weighted = spec.keys.get("grade"), spec.keys.get("positive_weight", 1) != 1
    if spec.keys.get("positives", "diagonal") == "diagonal":
        for key, is_set in (("positive_weight", is_weighted), ("grade", grade is not None)):
            if is_set:
                yield Problem(
                    (*path, key),
                    "has no effect without positives. Set positives: caption, label or a column.",
                )
    elif grade is not None and is_weighted:
        yield Problem((*path, "positive_weight"), "has no effect with a grade. Remove one of them.")
    elif grade is not None and grade == spec.keys["positives"]:
        yield Problem((*path, "grade"), f"column '{grade}' cannot be both positives and grade.")


def _modality(recipe: Recipe, address: Address) -> object:
    return modality_of(recipe.towers, address.tower)


def head_of(towers: dict[str, TowerSpec], address: Address) -> HeadSpec | None:
    """The head whose output an address names; a tower that follows another has that one's."""
    tower = towers[address.tower]
    return towers.get(tower.follows or "", tower).all_heads.get(address.output)


def uses(contract: Contract, call: Call) -> list[Use]:
    """Every address of a call with what it is taken for, the student's first."""
    uses: list[Use] = []
    for forms, side in ((contract.student, call.student), (contract.teacher, call.teacher)):
        addresses = listed(side)
        form = form_for(forms, len(addresses))
        if form is not None:
            uses += zip(addresses, form.of(len(addresses)), strict=True)
    return uses


def episode_uses(contract: Contract, arrow: Arrow) -> list[Use]:
    """Every address that the start of an episode reads, with what it is taken for."""
    if arrow.episode is None or contract.episode is None:
        return []
    uses: list[Use] = []
    for name, side in arrow.episode._asdict().items():
        form = form_for(contract.episode.get(name, ()), len(listed(side)))
        if form is not None:
            uses += zip(listed(side), form.of(len(listed(side))), strict=True)
    return uses


def listed(side: Side | None) -> tuple[Address, ...]:
    """The addresses of a side."""
    # An address is itself a tuple, so it is asked for first.
    if side is None:
        return ()
    return (side,) if isinstance(side, Address) else side


def _check_order(recipe: Recipe, contract: Contract, arrow: Arrow, path: Path) -> Iterator[Problem]:
    """Pairs of image and text that are the other way round on the teacher's side."""
    if not contract.student[0].is_tuple:
        return
    call = arrow.calls[0]
    student, teacher = (listed(side)[:2] for side in call)
    ours, theirs = (
        [modality_of(recipe.towers, address.tower) for address in side]
        for side in (student, teacher)
    )
    if len(set(ours)) == 2 and None not in ours and theirs == ours[::-1]:
        yield Problem(
            (*path, "teacher"),
            f"names {' and '.join(map(str, theirs))}, the student {' and '.join(map(str, ours))}."
            " Use one order.",
        )


def _check_shapes(
    recipe: Recipe, spec: DistillerSpec, contract: Contract, arrow: Arrow, path: Path
) -> Iterator[Problem]:
    """Rows where positions are wanted, the reverse, and selected positions of varying number where
    each sample must have as many."""
    for call in arrow.calls:
        for address, output in uses(contract, call):
            kind = kind_of(recipe, address)
            if kind is None or kind in _FITTING[output.kind]:
                continue
            side = "student" if address in listed(call.student) else "teacher"
            has = "a varying number of positions" if kind == "selected" else kind
            text = f"distiller '{spec.name}' takes {output} here; '{address}' has {has}."
            yield Problem((*path, side), text)
            return


_FITTING: dict[Kind, tuple[Kind, ...]] = {
    "rows": ("rows",),
    "positions": ("positions",),
    "either": ("rows", "positions"),
    "selected": ("positions", "selected"),
}
"""Outputs that fit what a distiller takes; a fixed number of positions is flattened as well."""


def kind_of(recipe: Recipe, address: Address) -> Kind | None:
    """Whether an output has rows or positions, as far as the recipe determines it."""
    tower = recipe.towers[address.tower]
    heads = recipe.towers.get(tower.follows or "", tower).all_heads
    kind, name, seen = None, address.output, list[str]()
    while name in heads and name not in seen:
        seen.append(name)
        kind = _given_by(heads[name].name)
        if kind is not None:
            break
        reads = heads[name].reads
        name = (reads if isinstance(reads, str) else reads[0]).partition(".")[0]
    else:
        # A tower without a head called head gives its feature.
        root = "backbone" if name == "head" and tower.run is None else name
        kind = _BY_ROOT.get(root)
        if LAYER.fullmatch(root):
            kind = "rows" if root.endswith(".pooled") else "positions"
    masked = mask_of(recipe.data, address.input)
    if kind == "positions" and masked is not None and mask_varies(masked):
        selects = any(heads[each].at != "all" for each in seen)
        return "selected" if selects else kind
    return kind


_BY_ROOT: dict[str, Kind] = {"backbone": "rows", "tokens": "positions", "input": "positions"}


def _given_by(head: str) -> Kind | None:
    """What a head gives that takes positions or pictures; None for one that takes rows, or
    positions one by one, and gives as many."""
    try:
        forward = find_method("head", head, "forward")
    except RecipeError:
        return None
    arguments = [] if forward is None else forward.node.args.args[1:2]
    if forward is None or not arguments or arguments[0].annotation is None:
        return None
    try:
        takes = forward.value(arguments[0].annotation)
        gives = None if forward.node.returns is None else forward.value(forward.node.returns)
    except (NameError, AttributeError, TypeError, ValueError):
        return None
    if len(getattr(takes, "axes", ())) <= 2:
        return None
    return "rows" if len(getattr(gives, "axes", ())) == 2 else "positions"


def gives_positions(head: str) -> bool:
    """Whether a head takes positions or pictures as a whole and gives positions."""
    return _given_by(head) == "positions"


def root_of(towers: dict[str, TowerSpec], address: Address) -> str | None:
    """What the heads of an output read in the end: backbone, tokens or input; of several sources
    the first. None where it is not known."""
    tower = towers[address.tower]
    tower = towers.get(tower.follows or "", tower)
    heads, name, seen = tower.all_heads, address.output, set[str]()
    while name in heads and name not in seen:
        seen.add(name)
        reads = heads[name].reads
        name = (reads if isinstance(reads, str) else reads[0]).partition(".")[0]
    # A tower without a head called head gives its feature.
    if name == "head" and tower.run is None:
        return "backbone"
    if LAYER.fullmatch(name):
        return name
    return name if name in ("backbone", "tokens", "input") else None


def _check_prototypes(
    recipe: Recipe, spec: DistillerSpec, arrow: Arrow, path: Path
) -> Iterator[Problem]:
    """Prototypes of the distiller's own over heads that have some already."""
    for key in ("num_prototypes", "prototypes"):
        if not _may_be_null(spec, key) or _setting("distiller", spec, key) is None:
            continue
        for address in arrow.addresses():
            if _has_prototypes(recipe, address):
                yield Problem(
                    (*path, key),
                    f"tower '{address.tower}' has prototypes of its own. Set {key}: null, or give"
                    " the towers head 'mlp'.",
                )
                return


def _check_first_pictures(spec: DistillerSpec, arrow: Arrow, path: Path) -> Iterator[Problem]:
    """Teachers that are not the first pictures of their students, where a picture is not compared
    with itself: the two are matched by their number in the list."""
    if not attributes_of("distiller", spec.name).get("skips_own_picture"):
        return
    for call in arrow.calls:
        if isinstance(call.student, Address) or isinstance(call.teacher, Address):
            continue
        students, teachers = ([(one.input, one.picture) for one in listed(side)] for side in call)
        if teachers != students[: len(teachers)] or len(students) < 2:
            yield Problem(
                (*path, "teacher"),
                f"distiller '{spec.name}' compares each picture with the others only, so the"
                " student lists two or more pictures, and the teacher the first of them in the"
                " same order.",
            )
            return


def _has_prototypes(recipe: Recipe, address: Address) -> bool:
    head = head_of(recipe.towers, address)
    return head is not None and head.name == "prototypes"


def _width_key(head: Component) -> str:
    """The key of a head that sets its width."""
    keys = signature_of("head", head.name).key_names()
    return next(key for key in ("num_prototypes", "prototypes", "width") if key in keys)


def _width(recipe: Recipe, address: Address) -> int | None:
    """Width of an output, if a head sets it."""
    head = head_of(recipe.towers, address)
    if head is None:
        return None
    try:
        width = _setting("head", head, _width_key(head))
    except (RecipeError, StopIteration):
        return None
    return width if isinstance(width, int) else None


def _named(address: Address) -> str:
    return f"tower '{address}'" if str(address) == address.tower else f"'{address}'"


def _remedy(recipe: Recipe, address: Address, width: int) -> str:
    """How an output gets another width."""
    tower = recipe.towers[address.tower]
    owner, head = tower.follows or address.tower, head_of(recipe.towers, address)
    if head is not None:
        which = "the head" if address.output == "head" else f"head '{address.output}'"
        return f"Set `{_width_key(head)}: {width}` in {which} of '{owner}'."
    return f"Add `head: {{name: linear, width: {width}}}` to '{owner}'" + (
        "." if address.output == "head" else f" and write '{address._replace(output='head')}'."
    )


def _may_be_null(component: Component, name: str) -> bool:
    keys = {key.name: key for key in signature_of("distiller", component.name).keys}
    return name in keys and "None" in str(keys[name].annotation)


def _setting(kind: str, component: Component, name: str) -> object:
    """A component's key as written, or its default; None where it has neither."""
    default = next(
        (key.default for key in signature_of(kind, component.name).keys if key.name == name), None
    )
    value = component.keys.get(name, default)
    return None if value is REQUIRED else value
