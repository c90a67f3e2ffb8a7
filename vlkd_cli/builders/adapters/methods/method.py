"""What every parameter-efficient method of a text tower declares; torch-free, so that a recipe is
checked without torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from adapters import AdapterConfig
    from peft import PeftConfig


class Method:
    """Base of the methods: keyword-only constructor arguments are the keys of a tower's
    `adapter:`."""

    paper: ClassVar[str]
    """Where the method was published."""
    library: ClassVar[Literal["adapters", "peft", "vlkd"]]
    """Which library builds its modules."""
    merges: ClassVar[bool] = False
    """Whether its weights can be folded into the base weights without a remainder."""
    gates_over_tokens: ClassVar[bool] = False
    """Whether it averages something over all positions, padded ones included. Such a tower encodes
    sentences of equal length together."""

    named_layers: Sequence[int] = ()
    """Layers that its keys name, counted from 0; each has to be one of the encoder's."""

    @property
    def prompt_length(self) -> int:
        """How many learned positions it puts before a sentence."""
        return 0

    @abstractmethod
    def config(self) -> AdapterConfig | PeftConfig:
        """The library's own configuration object. Imports the library."""

    def problems(self, hidden_size: int) -> list[str]:
        """Why it does not fit an encoder of this width; empty where it does."""
        return []
