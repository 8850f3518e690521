"""One at a time: what writes to a folder waits for whoever does so already.

    python book/_tools/alone.py FOLDER COMMAND...

runs a command so. The lock is the system's, on the folder itself: it leaves no file, and ends with the last process
that has it, however that ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def alone(folder: str | os.PathLike[str]) -> Iterator[tuple[int, ...]]:
    """Hold the lock of a folder; the file descriptors are for `pass_fds` of those who work for us."""
    if fcntl is None:
        yield ()
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another run that works here.", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield (lock,)
    finally:
        os.close(lock)


def main(folder: str, *command: str) -> None:
    """Become the command once the lock is ours."""
    with alone(folder) as lock:
        for one in lock:
            os.set_inheritable(one, True)
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
