"""`python -m vlkd_cli` is `vlkd`."""

from __future__ import annotations

from vlkd_cli.app import main

if __name__ == "__main__":
    main()
