"""vlkd: align and distil image towers with text towers, from one YAML recipe."""

__version__ = "0.1.0"
