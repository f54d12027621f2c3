"""`python -m serve`; what it does is in `serve.service`.

Until it is ready it gives way to what answers on this machine already: the imports alone take a second of a core.
"""

from __future__ import annotations

import sys

from serve.priority import lower_session

if __name__ == "__main__":
    raise_session = lower_session()
    from serve.service import main

    sys.exit(main(on_ready=raise_session))
