"""`python -m moderation_client FILES...`: verdicts on the command line."""

from __future__ import annotations

import sys

from moderation_client._cli import main

if __name__ == "__main__":
    sys.exit(main())
