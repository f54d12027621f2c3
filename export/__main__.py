"""`python -m export RUN`: publish a run. Further commands: see `python -m export --help`."""

from __future__ import annotations

import sys

from export.command import main

if __name__ == "__main__":
    sys.exit(main())
