"""The named outputs of a tower: what each head reads, in which order heads run, and on which
pictures."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.builders.hiding import gather, positions
from vlkd_cli.recipe.address import LAYER

At = Literal["all", "hidden", "visible"]
Wanted = Collection[str] | Mapping[str, tuple[int, ...]]
"""Names of outputs, or a dict from each to the pictures that it is wanted of."""

INPUT, BACKBONE, TOKENS, HEAD = "input", "backbone", "tokens", "head"


class Source(NamedTuple):
    """What a head reads: an output, of the head's own picture or of a certain one of the same
    view."""

    output: str
    picture: int | None = None


class Head(NamedTuple):
    """A head of a tower.

    Args:
        module: takes rows `[B, D]`, tokens `[B, T, D]` or pictures `[B, 3, H, W]`, by the shape
            annotation of its `forward`; rows without one.
        reads: what it is applied to, joined along the features.
        at: at which positions of a masked view. For heads that work on single rows, rows are
            selected before the head; other heads see all of them and their output is selected.
    """

    module: nn.Module
    reads: tuple[Source, ...] = (Source(BACKBONE),)
    at: At = "all"


class Link(NamedTuple):
    """How a head is connected, without the head itself.

    Args:
        takes: dimensions of its input: 2 for rows, 3 for tokens, 4 for pictures.
        gives: dimensions of its output where it takes no rows: 2 for rows, else 3.
        arguments: which of `hidden`, `at` and `prefix` its `forward` takes: which positions are
            hidden, which of them its rows represent, and an encoder's class and register tokens.
        reads_at: the positions that its rows must represent; None: any.
        gives_at: the positions that its output represents; None: those of its input.
    """

    reads: tuple[Source, ...]
    at: At
    takes: int
    gives: int
    arguments: frozenset[str]
    reads_at: At | None
    gives_at: At | None


def read_sources(reads: str | Sequence[str]) -> tuple[Source, ...]:
    """The `reads:` of a recipe: `backbone`, `project.2`, or a list of such."""
    parts = [reads] if isinstance(reads, str) else reads
    split = [part.partition(".") for part in parts]
    return tuple(Source(name, int(picture) if dot else None) for name, dot, picture in split)


def reading_order(reads: Mapping[str, tuple[Source, ...]]) -> list[str]:
    """Heads by name, each after those that it reads.

    Raises:
        ValueError: there is none, or a head reads what there is not.
    """
    left, order = dict(reads), [INPUT, BACKBONE, TOKENS]
    while left:
        ready = [
            name
            for name, sources in left.items()
            if all(each.output in order or LAYER.fullmatch(each.output) for each in sources)
        ]
        if not ready:
            name, sources = next(iter(left.items()))
            missing = next(each.output for each in sources if each.output not in order)
            why = "in a circle" if missing in left else "which the tower does not have"
            raise ValueError(f"head '{name}' reads '{missing}', {why}")
        order += ready
        left = {name: sources for name, sources in left.items() if name not in ready}
    return order[3:]


class Output(NamedTuple):
    """Values of one output for some pictures of each sample, sample after sample.

    Args:
        values: `[N, ...]`, N = samples * pictures; or `[M, E]` with `counts`.
        pictures: which pictures of a view, from 1.
        counts: `[N]` int64: how many of the M rows belong to each picture, where that varies.
        at: which positions of the view the rows represent, if there is one for each position.
        prefix: `[N, P, D]`, an encoder's class and register tokens; None for other outputs.
    """

    values: Tensor
    pictures: tuple[int, ...] = (1,)
    counts: Tensor | None = None
    at: At = "all"
    prefix: Tensor | None = None

    def of(self, pictures: tuple[int, ...]) -> Output:
        """The same of these pictures, in this order."""
        if pictures == self.pictures:
            return self
        columns = [self.pictures.index(picture) for picture in pictures]
        if self.counts is None:

            def chosen_of(values: Tensor) -> Tensor:
                split: Tensor = values.unflatten(0, (-1, len(self.pictures)))
                return split[:, columns].flatten(0, 1)

            prefix = None if self.prefix is None else chosen_of(self.prefix)
            return Output(chosen_of(self.values), pictures, at=self.at, prefix=prefix)
        starts = self.counts.cumsum(0) - self.counts
        chosen = [
            part.unflatten(0, (-1, len(self.pictures)))[:, columns].flatten()
            for part in (starts, self.counts)
        ]
        shift = chosen[0] - (chosen[1].cumsum(0) - chosen[1])
        rows = shift.repeat_interleave(chosen[1])
        rows = rows + torch.arange(len(rows), device=rows.device)
        return Output(self.values[rows], pictures, chosen[1], self.at)


class Outputs:
    """The heads of a tower in the order in which they run, and what they need of each other.

    Args:
        heads: by name.

    Raises:
        ValueError: a head reads what there is not, a head reads itself in a circle, or a head of
            pictures reads anything else.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.links: dict[str, Link] = {}
        for name in reading_order({name: head.reads for name, head in heads.items()}):
            kind, reads = type(heads[name].module), heads[name].reads
            takes = _dimensions(kind, first=True) or 2
            inputs = {source.output for source in reads}
            if (INPUT in inputs) != (takes == 4) or (INPUT in inputs and len(inputs) > 1):
                what = "pictures" if takes == 4 else "features"
                raise ValueError(f"head '{name}' takes {what} and reads {', '.join(inputs)}")
            gives = 2 if _dimensions(kind, first=False) == 2 else 3
            self.links[name] = Link(
                reads,
                heads[name].at,
                takes,
                gives,
                arguments=frozenset({"hidden", "at", "prefix"} & set(_parameters(kind))),
                reads_at=getattr(heads[name].module, "reads_at", None),
                gives_at=getattr(heads[name].module, "gives_at", None),
            )

    def resolved(self, output: str) -> str:
        """The output itself; `head` means the backbone's feature if there is no head of that
        name."""
        return BACKBONE if output == HEAD and HEAD not in self.links else output

    def needed(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Every output that must be computed, and of which pictures, ascending."""
        needed: dict[str, set[int]] = {}
        for output, pictures in wanted.items():
            needed.setdefault(self.resolved(output), set()).update(pictures)
        for name in reversed(self.links):
            for source in self.links[name].reads if name in needed else ():
                own = needed[name] if source.picture is None else {source.picture}
                needed.setdefault(source.output, set()).update(own)
        return {output: tuple(sorted(pictures)) for output, pictures in needed.items()}

    def closure(self, outputs: Collection[str]) -> set[str]:
        """The outputs and all that they are made from."""
        return set(self.needed(dict.fromkeys(outputs, (1,))))

    def is_row(self, output: str) -> bool:
        """Whether an output has one row for a picture; otherwise one for each position."""
        output = self.resolved(output)
        if output not in self.links:
            return output == BACKBONE or output.endswith(".pooled")
        link = self.links[output]
        if link.takes == 2:
            return all(self.is_row(source.output) for source in link.reads)
        return link.gives == 2

    def at(self, output: str) -> At:
        """At which positions of a masked view an output has rows."""
        output = self.resolved(output)
        if output not in self.links:
            return "all"
        link = self.links[output]
        if link.at != "all" or link.takes != 2:
            return link.at
        chosen: set[At] = {self.at(source.output) for source in link.reads}
        return next(iter(chosen - {"all"}), "all")

    @property
    def reads_hidden(self) -> bool:
        """Whether a head receives the hidden positions, or selects by them."""
        return any(link.at != "all" or "hidden" in link.arguments for link in self.links.values())

    def refuse_lost_positions(self, tokens_at: At) -> None:
        """Refuse heads at positions that what they read does not have.

        Args:
            tokens_at: the positions of the backbone's tokens where some are hidden.

        Raises:
            ValueError: naming the first such head.
        """
        found: dict[str, At] = {INPUT: "all", BACKBONE: "all", TOKENS: tokens_at}
        for name, link in self.links.items():
            at = _together([found[source.output] for source in link.reads], name)
            reads = " and ".join(source.output for source in link.reads)
            if link.reads_at not in (None, at):
                raise ValueError(
                    f"head '{name}' takes only the {link.reads_at} positions, and '{reads}' has"
                    f" {_words(at)}"
                )
            at = link.gives_at or at
            if link.at not in ("all", at) and at != "all" and not self.is_row(name):
                raise ValueError(
                    f"head '{name}' is at the {link.at} positions, and '{reads}' has {_words(at)}"
                )
            found[name] = at if link.at == "all" else link.at

    def run(
        self,
        modules: Mapping[str, nn.Module],
        found: dict[str, Output],
        needed: Mapping[str, tuple[int, ...]],
        hidden: Output | None,
    ) -> dict[str, Output]:
        """Each needed head once.

        Args:
            modules: the heads by name.
            found: the outputs that heads start from; those of the heads are added to it.
            needed: what `needed` gave.
            hidden: `[N, T]` bool of all pictures of the view; None: nothing is hidden.
        """
        for name, link in self.links.items():
            if name not in needed:
                continue
            module, pictures = modules[name], needed[name]
            own = None if hidden is None else hidden.of(pictures).values
            parts = [_read(found[source.output], source, pictures) for source in link.reads]
            counts, at = parts[0].counts, _together([part.at for part in parts], name)
            values = (
                parts[0].values
                if len(parts) == 1
                else torch.cat([part.values for part in parts], dim=-1)
            )
            if link.takes == 2:
                if values.ndim == 3 and own is not None:
                    values, counts, at = _selected(values, own, link.at, at)
                values = _row_by_row(module, values)
            else:
                known = {"hidden": own, "at": at, "prefix": parts[0].prefix}
                values = _whole(module, values, {key: known[key] for key in link.arguments})
                if own is not None and values.ndim == 3:
                    at = link.gives_at or at
                    values, counts, at = _selected(values, own, link.at, at)
            found[name] = Output(values, pictures, counts, at)
        return found


def _read(found: Output, source: Source, pictures: tuple[int, ...]) -> Output:
    wanted = pictures if source.picture is None else (source.picture,) * len(pictures)
    return found.of(wanted)


def _row_by_row(module: nn.Module, values: Tensor) -> Tensor:
    rows: Tensor = module(values if values.ndim == 2 else values.flatten(0, 1))
    return rows if values.ndim == 2 else rows.unflatten(0, values.shape[:2])


def _together(positions: Sequence[At], head: str) -> At:
    """The positions of rows that are concatenated."""
    if len(set(positions)) > 1:
        raise ValueError(f"head '{head}' joins rows of {' and '.join(map(_words, positions))}")
    return positions[0]


def _words(at: At) -> str:
    return "all positions" if at == "all" else f"only the {at} positions"


def _whole(module: nn.Module, values: Tensor, arguments: Mapping[str, object]) -> Tensor:
    # A target has nothing to learn, and neither has the picture that it is made from.
    learns = getattr(module, "has_weights", True)
    with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
        output: Tensor = module(values, **arguments)
    return output


def _selected(
    values: Tensor, hidden: Tensor, wanted: At, at: At
) -> tuple[Tensor, Tensor | None, At]:
    """The wanted positions of `[N, T, E]`: `[N, m, E]`, or `[M, E]` and counts `[N]` where their
    number varies; and what they are.

    Args:
        at: the positions of the values.
    """
    if wanted in ("all", at):
        return values, None, at
    assert at == "all", "see Outputs.refuse_lost_positions"
    chosen = hidden if wanted == "hidden" else ~hidden
    try:
        return gather(values, positions(chosen)), None, wanted
    except ValueError:
        return values[chosen], chosen.sum(1), wanted


def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)


def _dimensions(kind: type[nn.Module], *, first: bool) -> int | None:
    """Dimensions of the first argument, or of the result, of `forward`, by its shape annotation."""
    try:
        hints: dict[str, object] = typing.get_type_hints(kind.forward)
    except (NameError, TypeError):
        return None
    names = [name for name in _parameters(kind) if name != "self"]
    shape = getattr(hints.get(names[0] if first else "return"), "dim_str", None)
    return None if shape is None or "..." in shape else len(shape.split())
