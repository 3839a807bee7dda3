"""``python -m owngpt`` is the ``owngpt`` command."""

import sys

from owngpt.cli.main import main

sys.exit(main())
