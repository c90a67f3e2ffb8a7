"""Whether the readers of a recipe offer what its towers read, judged without opening any data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import MAIN_VIEW, Address, modality_of, text_names
from vlkd_cli.recipe.arrow_checks import arrows_of
from vlkd_cli.recipe.caption_weights import weights_problem
from vlkd_cli.recipe.column_names import names_problems
from vlkd_cli.recipe.contract import contract_of
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.modality import FACTS, has_views, is_named
from vlkd_cli.recipe.objectives import listed
from vlkd_cli.recipe.params import attributes_of, signature_of
from vlkd_cli.recipe.schema import DataSpec, DistillerSpec, Recipe


def check_offers(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the data section: towers and texts without a reader that offers them, and classes
    that cannot be balanced."""
    yield from _check_names_and_weights(recipe)
    if recipe.data is None:
        return
    addresses = [a for _, arrow, _ in arrows_of(recipe) for a in arrow.addresses()]
    addresses = [address for address in addresses if address.tower in recipe.towers]
    yield from _check_modalities(recipe, recipe.data, addresses)
    yield from _check_views(recipe, recipe.data)
    yield from _check_augments(recipe, recipe.data, addresses)
    yield from _check_points(recipe, recipe.data, addresses)
    yield from _check_texts(recipe.data)
    yield from _check_exclude(recipe.data)
    yield from _check_wants(recipe, recipe.data)
    yield from _check_per_class(recipe, recipe.data)
    yield from _check_distinct(recipe, recipe.data)


def offers_of(reader: str, keys: Mapping[str, object]) -> frozenset[str] | None:
    """What a reader with these keys offers: of image, text, mesh, label, target. None: not
    declared."""
    attributes = attributes_of("reader", reader)
    always, by_key = attributes.get("offers"), attributes.get("offers_by_key")
    if not always and not by_key:
        return None
    try:
        defaults = {key.name: key.default for key in signature_of("reader", reader).keys}
    except RecipeError:
        return None
    given = {
        offer
        for key, offer in (by_key or {}).items()
        if keys.get(key, defaults.get(key)) not in (None, {}, [])
    }
    return frozenset(always or ()) | given


def readers_of(data: DataSpec | None) -> list[tuple[str, Mapping[str, object], Path]]:
    """Name, keys and path of each reader."""
    found: list[tuple[str, Mapping[str, object], Path]] = []
    if data is None:
        return found
    if isinstance(data.reader, str):
        found.append((data.reader, data.keys, ("data", "reader")))
    for number, entry in enumerate(data.readers or []):
        if isinstance(entry.get("reader"), str):
            key_path = ("data", "readers", number, "reader")
            found.append((entry["reader"], {**data.keys, **entry}, key_path))
    return found


def _check_modalities(
    recipe: Recipe, data: DataSpec, addresses: list[Address]
) -> Iterator[Problem]:
    for name in dict.fromkeys(address.tower for address in addresses):
        modality = modality_of(recipe.towers, name)
        for reader, keys, key_path in readers_of(data):
            offers = offers_of(reader, keys)
            if offers is not None and modality is not None and modality not in offers:
                yield Problem(
                    key_path,
                    f"reader '{reader}' has no {FACTS[modality].offered} with these keys, and tower"
                    f" '{name}' reads them.{_remedy(reader, modality)}",
                )


def _remedy(reader: str, offer: str) -> str:
    by_key = attributes_of("reader", reader).get("offers_by_key", {})
    keys = [key for key, offered in by_key.items() if offered == offer]
    return f" Set data.{keys[0]}, or take another reader." if keys else " Take another reader."


def _check_views(recipe: Recipe, data: DataSpec) -> Iterator[Problem]:
    """Views, and the augmentation of the main one, that no distiller reads."""
    arrows = [arrow for _, arrow, _ in arrows_of(recipe)]
    if not arrows or len(arrows) < len(recipe.distillers):
        return
    read = [a for arrow in arrows for a in (*arrow.addresses(), *arrow.episode_addresses())]
    used = {address.input for address in read}
    if not used <= {MAIN_VIEW, *data.views, *text_names(data)}:
        return  # a misspelled name is reported where it is written
    for name in data.views:
        if name not in used:
            yield Problem(
                ("data", "views", name),
                f"nothing reads it. Write TOWER@{name} in a distiller, or remove it.",
            )
    pictures = {
        address.input
        for address in read
        if address.tower in recipe.towers
        and not is_named(modality_of(recipe.towers, address.tower))
    }
    # A view that is null has the augmentation of the main one.
    lends = any(data.views.get(name, data.augment) is None for name in pictures)
    if data.augment is not None and MAIN_VIEW not in pictures and not lends:
        yield Problem(
            ("data", "augment"),
            "has no effect: no distiller reads pictures of the view 'main'. Remove it.",
        )


def _check_augments(recipe: Recipe, data: DataSpec, addresses: list[Address]) -> Iterator[Problem]:
    """Views whose augmentation, size or mask is not for what a tower reads of them."""
    met = set()
    for address in addresses:
        modality, view = modality_of(recipe.towers, address.tower), address.input
        own = data.augment if view == MAIN_VIEW else data.views.get(view, data.augment)
        if not has_views(modality) or own is None or (modality, view) in met:
            continue
        assert modality is not None
        met.add((modality, view))
        path = ("data", "augment") if view == MAIN_VIEW else ("data", "views", view)
        reads = f"tower '{address.tower}' reads {FACTS[modality].plural}"
        made_for = attributes_of("augment", own.name).get("modality")
        if made_for not in (None, modality):
            yield Problem(
                (*path, "name"),
                f"'{own.name}' changes {FACTS[made_for].plural}, and {reads} of this view. Write"
                f" {FACTS[modality].augment} or none, or give the tower a view of its own.",
            )
        for key in ("size_px", "mask"):
            if getattr(own, key) is not None and not FACTS[modality].has_pixels:
                yield Problem((*path, key), f"has no effect: {reads} of this view. Remove it.")


def _check_points(recipe: Recipe, data: DataSpec, addresses: list[Address]) -> Iterator[Problem]:
    """Towers that read more points of a mesh than the reader samples."""
    for name in dict.fromkeys(address.tower for address in addresses):
        tower = recipe.towers[name]
        reads = _points("builder", tower.builder, tower.keys) if tower.builder else None
        for reader, keys, _ in readers_of(data):
            sampled = _points("reader", reader, keys)
            if reads is not None and sampled is not None and reads > sampled:
                yield Problem(
                    ("data", "points"),
                    f"reader '{reader}' samples {sampled} points of each mesh, and tower '{name}'"
                    f" reads {reads}. Raise data.points, or lower towers.{name}.points.",
                )


def _points(kind: str, name: str, keys: Mapping[str, object]) -> int | None:
    """The key `points` of a component; None where it has none."""
    try:
        known = {key.name: key.default for key in signature_of(kind, name).keys}
    except RecipeError:
        return None
    value = keys.get("points", known.get("points"))
    return value if "points" in known and isinstance(value, int) else None


def _check_texts(data: DataSpec) -> Iterator[Problem]:
    texts = text_names(data)
    for name in texts:
        if name in data.views:
            yield Problem(
                ("data", "views", name), f"'{name}' is a view and a text. Rename one of them."
            )


def _check_names_and_weights(recipe: Recipe) -> Iterator[Problem]:
    for number, spec in enumerate(recipe.evals):
        data = spec.keys.get("data")
        if isinstance(data, dict) and data.get("caption_weights") is not None:
            yield Problem(
                ("evals", number, "data", "caption_weights"),
                "has no effect: suites read all captions of a sample. Leave it out.",
            )
    for _, keys, key_path in readers_of(recipe.data):
        for name, problem in names_problems(keys):
            yield Problem((*key_path[:-1], name), problem)
        weights = keys.get("caption_weights")
        if not isinstance(weights, list):
            continue
        key = "caption_key" if isinstance(keys.get("caption_key"), list) else "caption"
        sources = keys.get(key)
        count = len(sources) if isinstance(sources, list) else 1
        if problem := weights_problem(weights, count, key):
            yield Problem((*key_path[:-1], "caption_weights"), problem)


def _check_exclude(data: DataSpec) -> Iterator[Problem]:
    streams = [reader for reader, keys, _ in readers_of(data) if streams_of(reader, keys)]
    if data.exclude is not None and streams:
        yield Problem(
            ("data", "exclude"),
            f"has no effect: reader '{streams[0]}' streams here, and broken samples are replaced as"
            " they come. Remove it.",
        )


def _check_wants(recipe: Recipe, data: DataSpec) -> Iterator[Problem]:
    """Distillers that need labels or targets, or positions of rows, that no reader offers."""
    readers = readers_of(data)
    offers = [offers_of(reader, keys) for reader, keys, _ in readers]
    streams = [reader for reader, keys, _ in readers if streams_of(reader, keys)]
    for spec, arrow, path in arrows_of(recipe):
        contract = contract_of(spec.name)
        wanted = {want for want, needed in contract.wants.items() if needed}
        if contract.needs_labels(len(listed(arrow.calls[0].student))):
            wanted.add("labels")
        by_key = attributes_of("distiller", spec.name).get("wants_by_key", {})
        wanted |= {by_value.get(spec.keys.get(key)) for key, by_value in by_key.items()}
        for want, offer in (("labels", "label"), ("targets", "target"), ("captions", "text")):
            if want in wanted and not any(each is None or offer in each for each in offers):
                names = " and ".join(f"'{reader}'" for reader, _, _ in readers)
                yield Problem(
                    path,
                    f"distiller '{spec.name}' needs {want}, and reader {names} has none with these"
                    f" keys.{_remedy(readers[0][0], offer)}",
                )
        yield from _check_columns(spec, data, path)
        if contract.counts_rows and streams:
            yield Problem(
                path,
                f"distiller '{spec.name}' needs the index of each row, but reader"
                f" '{streams[0]}' streams here. Read it with random access.",
            )


def _check_columns(spec: DistillerSpec, data: DataSpec, path: Path) -> Iterator[Problem]:
    """Columns that a distiller names and no reader has."""
    by_key = attributes_of("distiller", spec.name).get("column_keys", {})
    for key, words in by_key.items():
        name = spec.keys.get(key)
        if not isinstance(name, str) or name in words:
            continue
        if name == data.distinct:
            yield Problem((*path, key), f"has no effect: with data.distinct: {name}{_NEVER}")
        yield from _check_column(data, name, words, (*path, key))


_CAPTIONS = "text"
_NEVER = ", no two samples of a step have the same. Remove one of the two."


def _check_column(data: DataSpec, name: str, words: Sequence[str], path: Path) -> Iterator[Problem]:
    for reader, keys, _ in readers_of(data):
        attributes = attributes_of("reader", reader)
        columns = attributes.get("column_names", ())
        if streams_of(reader, keys):
            text = f"needs random access to samples, but reader '{reader}' streams here."
        elif not attributes.get("has_columns", True):
            text = f"'{name}' is a column, and reader '{reader}' has none."
        elif columns and name not in columns:
            text = f"reader '{reader}' has no column '{name}'."
        else:
            continue
        known = [*words, *columns]
        listed = f" Known: {', '.join(known)}." if known else ""
        yield Problem(path, text + did_you_mean(name, known) + listed)
        return


def _check_distinct(recipe: Recipe, data: DataSpec) -> Iterator[Problem]:
    path, what = ("data", "distinct"), data.distinct
    if what is None:
        return
    if data.per_class is not None:
        yield Problem(path, "sets the order of samples, and so does per_class. Remove one of them.")
    if what != "caption":
        yield from _check_column(data, what, ("caption",), path)
        return
    for reader, keys, _ in readers_of(data):
        offers = offers_of(reader, keys)
        if offers is not None and _CAPTIONS not in offers:
            yield Problem(
                path,
                f"reader '{reader}' has no captions with these keys.{_remedy(reader, _CAPTIONS)}",
            )
        if streams_of(reader, keys):
            yield Problem(
                path, f"needs random access to samples, but reader '{reader}' streams here."
            )
    for number, spec in enumerate(recipe.distillers):
        if spec.keys.get("positives") == "caption":
            yield Problem(
                ("distillers", number, "positives"),
                f"has no effect: with data.distinct: caption{_NEVER}",
            )


def streams_of(reader: str, keys: Mapping[str, object]) -> bool:
    """Whether a reader with these keys reads in an order of its own."""
    attributes = attributes_of("reader", reader)
    return bool(attributes.get("streams")) or any(
        keys.get(key) for key in attributes.get("streams_by_key", ())
    )


def _check_per_class(recipe: Recipe, data: DataSpec) -> Iterator[Problem]:
    path = ("data", "per_class")
    if data.per_class is None:
        return
    if data.per_class < 2:
        yield Problem(path, "is at least 2: a class with one sample has no pair. Leave it out.")
    elif recipe.train.batch_size % data.per_class:
        yield Problem(
            path,
            f"{data.per_class} does not divide train.batch_size, {recipe.train.batch_size}. Choose"
            " a multiple of it as batch size.",
        )
    if not data.shuffle:
        yield Problem(path, "sets its own order, so shuffle: false has no effect.")
    for reader, keys, key_path in readers_of(data):
        offers = offers_of(reader, keys)
        if offers is not None and "label" not in offers:
            yield Problem(
                key_path,
                f"reader '{reader}' has no labels with these keys, and data.per_class needs them."
                f"{_remedy(reader, 'label')}",
            )
        if streams_of(reader, keys):
            yield Problem(
                path, f"needs random access to samples, but reader '{reader}' streams here."
            )
