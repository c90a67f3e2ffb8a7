"""What the members of a sample in a tar shard mean: which is the image, and which texts the others
hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from vlkd_cli.data.files.class_numbers import class_number
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.files.texts import decode_text, finite_number, kind_of, parse_json, text_of
from vlkd_cli.data.images.files import is_data

_Member = TypeVar("_Member")
JSON = "json"


class Parts(NamedTuple):
    """Which members of a sample are what, by their suffix (lower case, without a leading dot).

    Args:
        images: of the image, the first that a sample has is taken.
        captions: of texts, each a source of captions.
        caption_keys: where the only one of `captions` is a json: its keys, each a source.
        label: of the class number.
        texts: named texts, each with its keys in the json member.
        targets: keys of numbers in the json member.
    """

    images: tuple[str, ...]
    captions: tuple[str, ...] = ()
    caption_keys: tuple[str, ...] = ()
    label: str = "cls"
    texts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    targets: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """What is read of a sample: "image", and the suffix of each member with texts or
        numbers."""
        numbers = [JSON] if self.targets else []
        return ("image", *dict.fromkeys((*self.text_members, *numbers)))

    @property
    def text_members(self) -> tuple[str, ...]:
        """The suffix of each member with texts."""
        return tuple(dict.fromkeys((*self.captions, *([JSON] if self.texts else []))))

    @property
    def counts_members(self) -> bool:
        """Whether a sample has as many texts as members that hold texts."""
        return not (self.texts or self.caption_keys or len(self.captions) > 1)

    def of_image(self, members: Mapping[str, _Member]) -> _Member | None:
        """The member of the image: the first suffix that the sample has."""
        return next((members[suffix] for suffix in self.images if suffix in members), None)

    def of_texts(self, members: Mapping[str, _Member]) -> dict[str, _Member]:
        """The members that hold texts."""
        return {suffix: members[suffix] for suffix in self.text_members if suffix in members}

    def captions_in(self, members: Mapping[str, bytes]) -> list[tuple[int, str]]:
        """The captions of a sample, each with the number of its source. Of several sources, empty
        ones have none.

        Args:
            members: content by suffix.

        Raises:
            ValueError: a member does not hold what is expected.
        """
        if self.caption_keys:
            content = members.get(self.captions[0])
            return [] if content is None else _under_keys(parse_json(content), self.caption_keys)
        found = [
            (source, decode_text(members[suffix]).strip())
            for source, suffix in enumerate(self.captions)
            if suffix in members
        ]
        return [each for each in found if each[1] or len(self.captions) == 1]

    def texts_in(self, members: Mapping[str, bytes]) -> dict[str, list[str]]:
        """All texts of a sample by name, its captions first; see `captions_in`."""
        found = {MAIN: [text for _, text in self.captions_in(members)]}
        if self.texts:
            values = parse_json(members[JSON]) if JSON in members else {}
            for name, keys in self.texts:
                found[name] = [text for key in keys for text in _under(values, key)]
        return found

    def targets_in(self, members: Mapping[str, bytes]) -> list[float]:
        """The numbers of a sample; NaN where it lacks one."""
        values: object = None
        if self.targets and JSON in members:
            try:
                values = parse_json(members[JSON])
            except ValueError:
                pass  # no number can be read, which breaks the sample
        there = values if isinstance(values, dict) else {}
        return [finite_number(there.get(key)) for key in self.targets]

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


def _under_keys(values: object, keys: Sequence[str]) -> list[tuple[int, str]]:
    """The texts of several keys, of which a sample may lack some."""
    if len(keys) == 1 or not isinstance(values, dict):
        return [(0, text) for text in _under(values, keys[0])]
    there = [(source, key) for source, key in enumerate(keys) if key in values]
    if not there:
        raise ValueError(f"the json has none of the keys {', '.join(keys)}")
    return [(source, text) for source, key in there for text in _under(values, key) if text]


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
