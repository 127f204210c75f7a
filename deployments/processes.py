"""Processes by id and start time; those of a session by the marker in their environment. Never by name."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import psutil
from pydantic import BaseModel, ConfigDict

# The variable that every process of a session inherits; its value is the session folder.
MARKER = "MANTA_SESSION"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 0.05


class Process(BaseModel):
    """A process that cannot be mistaken for a later one with the same id."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int | None = None) -> "Process":
        """The process `pid`, or this one."""
        found = psutil.Process(pid)
        return cls(pid=found.pid, started=found.create_time())

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        try:
            found = psutil.Process(self.pid)
            return abs(found.create_time() - self.started) < 0.5 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end; `code` is the exit code that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted inside, so that `finally` runs; while it runs, more are ignored.

    Raised in a destructor or a callback of C code it is swallowed there: a moment later it is raised again.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread is given signals
        yield
        return

    received: list[int] = []

    def unwind(number: int, _: FrameType | None) -> None:
        ignore_signals()
        received.append(number)
        raise Interrupted(number)

    def again(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted(received[0])

    def swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            signal.signal(signal.SIGALRM, again)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            hook(unraisable)

    before = {number: signal.signal(number, unwind) for number in ENDING}
    before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
    hook, sys.unraisablehook = sys.unraisablehook, swallowed
    try:
        yield
    except BaseException:
        if received:  # whatever a library has made of it
            raise Interrupted(received[0]) from None
        raise
    finally:
        sys.unraisablehook = hook
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first SIGINT, SIGTERM or SIGHUP inside sets; the next one does what it did before."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def set_stop(_number: int, _frame: FrameType | None) -> None:
        restore()
        stop.set()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        signal.signal(number, set_stop)
    try:
        yield stop
    finally:
        restore()


def ignore_signals() -> None:
    """From here on nothing interrupts: what has been started is being ended."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


def marked(session: Path) -> list[Process]:
    """Processes of `session`, by marker, command line or open files, without this process and those above it.

    Ray's agents write their title over their environment: only the logs that they hold open tell whose they are.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    inside = f"{session}/"
    found = []
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        try:
            mine = (
                process.environ().get(MARKER) == str(session)
                or any(inside in word for word in process.cmdline())
                or _holds_open(process.pid, inside)
            )
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(Process(pid=process.pid, started=process.create_time()))
        except psutil.Error:
            continue
    return found


def _holds_open(pid: int, inside: str) -> bool:
    try:
        return any(str(file.readlink()).startswith(inside) for file in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # a file closed meanwhile, or a process that has ended or is not ours
        return False


def end(processes: Iterable[Process], grace_s: float) -> None:
    """SIGTERM, and SIGKILL for those that live on after `grace_s` seconds."""
    left = [process for process in processes if process.alive()]
    _send(left, signal.SIGTERM if grace_s else signal.SIGKILL)
    left = _outlasting(left, grace_s or 5.0)
    if left and grace_s:
        _send(left, signal.SIGKILL)
        _outlasting(left, 5.0)


def _send(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        if process.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def _outlasting(processes: list[Process], seconds: float) -> list[Process]:
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if process.alive()]) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        time.sleep(0.05)
    return left
