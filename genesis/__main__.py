"""``python -m genesis``, and the command ``genesis``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; say what to install where that is missing."""
    try:
        from .cli import app
    except ModuleNotFoundError as exc:
        if exc.name not in ("typer", "rich"):
            raise
        sys.exit(f"the command line needs {exc.name}: pip install 'genesis-checkpoint[cli]'")
    app()


if __name__ == "__main__":
    main()
