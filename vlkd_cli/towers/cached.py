"""A tower whose features were computed before: it runs only its heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vlkd_cli.preprocessing import Inputs
from vlkd_cli.towers.outputs import BACKBONE, Output
from vlkd_cli.towers.tower import Tower


class CachedTower(Tower):
    """The same tower with cached rows for inputs; its parts are the original's own objects, so that
    training one trains the other.

    Raises:
        ValueError: the original's features change in training.
    """

    def __init__(self, original: Tower) -> None:
        if not original.cacheable:
            raise ValueError(
                f"tower '{original.name}' is trained below its heads; its features cannot be cached"
            )
        nn.Module.__init__(self)
        self.__dict__.update(original.__dict__)
        self._digest = original.digest()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CachedTower:
        # The backbone stays where it is: nothing runs it here.
        nn.Module._apply(self, fn, recurse)
        return self

    def _sources(
        self,
        inputs: Inputs,
        needed: Mapping[str, tuple[int, ...]],
        every: tuple[int, ...],
        hidden: Output | None,
    ) -> dict[str, Output]:
        """The cached rows as they are, `[B, feature_width]`."""
        assert isinstance(inputs, Tensor), "cached rows"
        dtype = next((one.dtype for one in self.parameters()), inputs.dtype)
        return {BACKBONE: Output(inputs.to(dtype))}
