"""Sizes of a recipe's `config:` and `max_length:`, checked before a library sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vlkd_cli.errors import RecipeError

SHORTEST_TEXT = 2
"""A limit of one token leaves nothing of a text but its start."""


def check_sizes(builder: str, config: Mapping[str, object], names: Collection[str]) -> None:
    """Refuse sizes that are not positive integers.

    Args:
        names: the keys of `config` that are sizes; those it does not have are passed over.

    Raises:
        RecipeError: naming the first such key.
    """
    for name in names:
        value = config.get(name, 1)
        if not is_size(value):
            raise RecipeError(
                f"builder '{builder}': config.{name}: expected an integer above 0, got {value!r}."
            )


def is_size(value: object) -> bool:
    """Whether a value is an integer above 0, or a list of them, one for each stage."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(is_size, value))
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_max_length(builder: str, max_length: int | None, *, least: int, most: int | None) -> None:
    """Refuse a limit on the length of texts that leaves no room for one, or that is more than the
    encoder has positions for.

    Args:
        least: fewest tokens of a text with one word, start and end included.
        most: positions of the encoder; None: any number.

    Raises:
        RecipeError: with the limits.
    """
    least = max(least, SHORTEST_TEXT)
    if most is not None and most < least:
        raise RecipeError(
            f"builder '{builder}': its {most} positions leave no room for a text. Choose at least"
            f" {least} as `max_length` of `config`."
        )
    if max_length is None:
        return
    if max_length < least:
        raise RecipeError(
            f"builder '{builder}': max_length: {max_length} leaves no room for a text. Choose at"
            f" least {least}."
        )
    if most is not None and max_length > most:
        raise RecipeError(
            f"builder '{builder}': max_length: {max_length} is more than the {most} positions of"
            f" the model. Choose at most {most}."
        )
