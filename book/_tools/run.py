"""Run a script of this project so that what ends it from outside is one line: an interruption, a disk that is full.

    python book/_tools/run.py SCRIPT ARGUMENTS...

A request to end (SIGTERM, SIGHUP) is an interruption, too, so that everything is cleaned up.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import runpy
import signal
import sys
from pathlib import Path

OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}
"""Errors of the system that are no fault of the script."""


def main() -> int:
    """Run the script as Python would; its exit status, 130 after an interruption, or 1."""
    del sys.argv[0]
    script = Path(sys.argv[0])
    sys.path[0] = str(script.resolve().parent)
    waiting = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    for number in waiting:
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(ImportError):
        importlib.import_module("vaebook.storage")  # with torch, whose C++ aborts if it is interrupted as it loads
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waiting)
        runpy.run_path(str(script), run_name="__main__")
    except KeyboardInterrupt:
        print(f"{script.stem}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        print(f"{script.stem}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
