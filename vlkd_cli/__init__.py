"""vlkd: align and distil image towers with text towers, from one YAML recipe."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd_cli.api import describe_models as describe_models
    from vlkd_cli.api import list_model_options as list_model_options
    from vlkd_cli.api import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The names of `vlkd_cli.api`."""
    api = import_module(f"{__name__}.api")
    if name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *import_module(f"{__name__}.api").__all__])
