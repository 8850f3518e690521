"""Run a script of this project so that what ends it from outside is one line: an interruption, a disk that is full.

    python book/_tools/run.py SCRIPT ARGUMENTS...

The script runs in a process of its own. A request to end (SIGINT, SIGTERM, SIGHUP) comes to this one, is passed on as
one interruption, and from then on nothing of what libraries have to say is shown. Under `make`, which has a line of its
own for what was interrupted, that one is enough.
"""

from __future__ import annotations

import contextlib
import errno
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}
"""Errors of the system that are no fault of the script."""
ENDING = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
"""Requests to end; one that is ignored stays so, as under nohup."""
HANDLED = {signal.SIGINT, *ENDING}
"""These and the one that the script gets: blocked while nothing handles them."""


def main() -> int:
    """Let the script run and show its stderr until a request to end comes; its exit status, or 130 after one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    (heard, stderr), (lives, alive) = os.pipe(), os.pipe()
    script = os.fork()
    if not script:
        os.close(heard), os.close(alive)
        os.setsid()  # what a terminal or a group is sent does not come a second time
        os.dup2(stderr, 2)
        threading.Thread(target=end_with, args=(lives,), daemon=True).start()
        return work()
    os.close(stderr), os.close(lives)
    asked, held = [], []

    def ask(number: int, _: object) -> None:
        if not asked:
            asked.append(number)
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(script, signal.SIGINT)

    def listen() -> None:
        while piece := os.read(heard, 2**16):
            held.append(piece) if asked else show(piece)

    for number in ENDING:
        signal.signal(number, ask)

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    ear = threading.Thread(target=listen, daemon=True)
    ear.start()
    if os.environ.get("MAKELEVEL"):  # a make that was killed cannot ask
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    code = os.waitstatus_to_exitcode(os.waitpid(script, 0)[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # too late: the work is done, and Python's own end is unprotected
    with contextlib.suppress(ProcessLookupError):
        os.killpg(script, signal.SIGKILL)  # what it started and left
    ear.join(1)
    if code == 130 or (asked and code):
        if os.environ.get("MAKELEVEL"):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            os.kill(os.getpid(), signal.SIGINT)
        show(f"{Path(sys.argv[1]).stem}: interrupted\n".encode())
        return 130
    show(b"".join(held))
    return code if code >= 0 else 128 - code


def show(said: bytes) -> None:
    """Write to stderr, as it comes; a terminal that was closed does not matter."""
    with contextlib.suppress(OSError):
        sys.stderr.buffer.write(said)
        sys.stderr.buffer.flush()


def end_with(lives: int) -> None:
    """Wait for the end of the process that listens, and end at once with all that was started."""
    os.read(lives, 1)
    os.killpg(0, signal.SIGKILL)


def work() -> int:
    """Run the script as Python would; its exit status, 130 after an interruption, or 1."""
    del sys.argv[0]
    script = Path(sys.argv[0])
    sys.path[0] = str(script.resolve().parent)
    for number in HANDLED:
        signal.signal(number, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        runpy.run_path(str(script.absolute()), run_name="__main__")  # Python, too, tells a script its whole path
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        print(f"{script.stem}: {error}", file=sys.stderr)
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # as above
    return 0


if __name__ == "__main__":
    sys.exit(main())
