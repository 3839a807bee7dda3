"""The ``owngpt`` command, also as ``python -m owngpt``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; interrupted while it is still being imported, it ends as it would later."""
    try:
        from owngpt.cli.main import main as run
    except KeyboardInterrupt:
        print("owngpt: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
