"""Run the parts of `make test`, and say how long each took and which failed.

    python tests/running/parts.py gates+cells style code

runs the targets check-gates and check-cells at the same time, then check-style, then check-code. Parts that run at
the same time print their output in one piece when they end. An interruption ends everything that was started, and of
that nothing is shown but a line, which under `make` is the one that it has.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import IO

PATIENCE = 10  # seconds that an interrupted part gets to end by itself
PARENT = os.getppid()
ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # requests to end
LIVES, HELD = os.pipe()  # who reads the first notices the end of this process, which alone has the second
asked_to_end: list[int] = []  # signals that came: an exception at any moment could forget a part that has just begun


@dataclass
class Part:
    """A target that runs: its process, where its output waits if it is not shown at once, and when it began."""

    name: str
    output: IO[bytes] | None
    start: float = field(default_factory=time.monotonic)
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start it in a group of processes of its own, which can be ended as a whole."""
        command = [os.environ.get("MAKE", "make"), "--no-print-directory", f"check-{self.name}"]
        streams = {"stdin": subprocess.DEVNULL, "stdout": self.output or subprocess.PIPE, "stderr": subprocess.STDOUT}
        colours = {"PY_COLORS": "1"} if self.output is None and sys.stdout.isatty() else {}
        environment = os.environ | colours | {"VAEBOOK_LIVES": str(LIVES)}
        self.process = subprocess.Popen(command, start_new_session=True, env=environment, pass_fds=[LIVES], **streams)
        self.shown = threading.Thread(target=self.show, daemon=True)
        if self.output is None:
            self.shown.start()

    def show(self) -> None:
        """Print what it writes as it comes, until an interruption."""
        while piece := os.read(self.process.stdout.fileno(), 2**16):
            if not asked_to_end:
                sys.stdout.buffer.write(piece)
                sys.stdout.flush()

    def ask(self, number: int) -> None:
        """If it still runs, ask the whole group to end, each time in another way."""
        if self.process.poll() is None and number not in self.asked:
            self.asked.append(number)
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Ask it to end and insist; then end what is left of the group."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.ask(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def report(self) -> str:
        """Print what it wrote if that waits, and return what came of it."""
        if self.output is not None:
            say(f"\n======== {self.name} ========")
            self.output.seek(0)
            sys.stdout.buffer.write(self.output.read())
        else:
            self.shown.join(1)
        failed = "" if self.process.returncode == 0 else " FAILED"
        return f"{self.name}{failed} {time.monotonic() - self.start:.0f} s"


def say(text: str) -> None:
    """Print at once, in order with what the parts write."""
    print(text, flush=True)


def run(names: list[str]) -> list[str]:
    """Run parts at the same time; what came of each, in the order in which they ended."""
    if len(names) == 1:
        say(f"\n======== {names[0]} ========")
    parts, told = [], []
    with contextlib.ExitStack() as stack:
        for name in names:
            output = stack.enter_context(tempfile.TemporaryFile()) if len(names) > 1 else None
            parts.append(Part(name, output))
            stack.callback(parts[-1].end)
        while parts and not asked_to_end:
            for part in [part for part in parts if part.process.poll() is not None]:
                parts.remove(part)
                told.append(part.report())
                say(told[-1])
            if os.environ.get("MAKELEVEL") and os.getppid() != PARENT:  # make was killed
                asked_to_end.append(signal.SIGHUP)
            time.sleep(0.05)
        for part in parts:  # all of them, before one is waited for
            part.ask(signal.SIGINT)
    return told


def main() -> int:
    """Run what the command line names; the exit status is 1 where a part failed."""
    for number in ENDING:  # also where a shell has them ignored
        signal.signal(number, lambda number, _: asked_to_end.append(number))
    start, told = time.monotonic(), []
    for stage in sys.argv[1:]:
        told += run(stage.split("+"))
        if asked_to_end:
            if os.environ.get("MAKELEVEL"):
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            say("\ninterrupted")
            return 130
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # too late to be asked
    failed = [line for line in told if " FAILED " in line]
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    say(f"\n{'FAILED' if failed else 'passed'} in {minutes} min {seconds} s: {', '.join(told)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
