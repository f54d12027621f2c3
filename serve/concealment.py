"""Keeps the admin token out of `ps`: tritonserver takes it on its command line only.

Once the server has read its arguments, the token's letters in its own memory are overwritten, which is what the kernel shows as
the command line. Until the server is ready, a second or two, other users of the machine can see it there. A system that hides
other users' processes (`hidepid=2` on /proc), or a container, closes that gap too.
"""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger("serve")

_ARG_START, _ARG_END = 47, 48
"""Places in /proc/PID/stat (see proc(5), where counting starts at 1)."""


def blank_argument(pid: int, secret: str) -> bool:
    """Overwrite `secret` with stars in the arguments of a child of ours; False, and a warning, where that is not allowed."""
    try:
        # The second field, the program's name in parentheses, can hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        start, end = int(fields[_ARG_START - 2]), int(fields[_ARG_END - 2])
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            hidden = secret.encode()
            memory.seek(start)
            memory.write(arguments.replace(hidden, b"*" * len(hidden)))
    except (OSError, ValueError, IndexError) as error:
        logger.warning("the admin token can be seen in the process list: it could not be hidden (%s)", error)
        return False
    return True
