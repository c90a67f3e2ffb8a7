"""vlkd: align and distil image towers with text towers, from one YAML recipe."""

# `python -m vlkd_cli` runs this file while the current folder is first on the path, so nothing is
# imported here: a typing.py next to a recipe must not run.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vlkd_cli.api import compose as compose
    from vlkd_cli.api import describe_models as describe_models
    from vlkd_cli.api import list_model_options as list_model_options
    from vlkd_cli.api import load as load
    from vlkd_cli.api import open_run as open_run
    from vlkd_cli.api import synthesize as synthesize

__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    """The names of `vlkd_cli.api`."""
    from importlib import import_module

    api = import_module(f"{__name__}.api")
    if name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    from importlib import import_module

    return sorted([*globals(), *import_module(f"{__name__}.api").__all__])
