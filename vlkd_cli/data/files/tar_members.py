"""What the members of a sample in a tar shard mean: which is the image, and which texts the others
hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from vlkd_cli.data.files.class_numbers import class_number
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.files.texts import decode_text, kind_of, parse_json, text_of
from vlkd_cli.data.images.files import is_data

_Member = TypeVar("_Member")
JSON = "json"


class Parts(NamedTuple):
    """Which members of a sample are what, by their suffix (lower case, without a leading dot)."""

    images: tuple[str, ...]
    caption: str | None
    caption_key: str | None = None
    label: str = "cls"
    texts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Named texts, each with its keys in the json member."""

    def of_image(self, members: Mapping[str, _Member]) -> _Member | None:
        """The member of the image: the first suffix that the sample has."""
        return next((members[suffix] for suffix in self.images if suffix in members), None)

    def of_texts(self, members: Mapping[str, _Member]) -> dict[str, _Member]:
        """The members that hold texts."""
        wanted = {self.caption, JSON if self.texts else None}
        return {suffix: members[suffix] for suffix in members if suffix in wanted}

    def texts_in(self, members: Mapping[str, bytes]) -> dict[str, list[str]]:
        """All texts of a sample by name, its captions first.

        Args:
            members: content by suffix.

        Raises:
            ValueError: a member does not hold what is expected.
        """
        found: dict[str, list[str]] = {MAIN: []}
        if self.caption is not None and self.caption in members:
            content = members[self.caption]
            if self.caption_key is None:
                found[MAIN] = [decode_text(content).strip()]
            else:
                found[MAIN] = _under(parse_json(content), self.caption_key)
        if self.texts:
            values = parse_json(members[JSON]) if JSON in members else {}
            for name, keys in self.texts:
                found[name] = [text for key in keys for text in _under(values, key)]
        return found

    def label_in(self, members: Mapping[str, bytes]) -> int:
        """The class number, or -1."""
        return class_number(members.get(self.label, b""))


def suffix_of_key(text: str) -> str:
    """A suffix as a recipe writes it, `.JPG` or `jpg`, as members are looked up by."""
    return text.lower().lstrip(".")


def split_member(path: str) -> tuple[str, str] | None:
    """Stem and suffix of a member's path, which parts at the first dot of its last component; None
    for a file that is not data."""
    path = path.removeprefix("./")
    if not is_data(path):
        return None
    folder, slash, file = path.rpartition("/")
    name, _, suffix = file.partition(".")
    return f"{folder}{slash}{name}", suffix.lower()


def _under(values: object, key: str) -> list[str]:
    if not isinstance(values, dict):
        raise ValueError(f"the json holds {kind_of(values)}, not an object")
    if key not in values:
        raise ValueError(f"the json has no key '{key}'")
    value = values[key]
    try:
        several = value if isinstance(value, list) else [value]
        return [text_of(text) for text in several if text is not None]
    except ValueError as error:
        raise ValueError(f"key '{key}' holds {error}") from None
