"""The signals that stop a serving process, from its first moment on, and how it ends.

The kernel discards a signal for which the first process of a container (PID 1) has no handler. So
begin() is called before all other modules are imported, which takes a quarter of a second. For the
same reason this module and the package itself import almost nothing.

A signal that was ignored when the process started stays ignored: nohup ignores SIGHUP, and a shell
ignores SIGINT for what it starts in the background.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def begin() -> None:
    """From now on, a stopping signal ends the process with exit code 0. Nothing needs to be
    undone yet, and an exception in the middle of the imports can crash a module written in C."""
    for descriptor in 0, 1, 2:
        # The next file that is opened, for instance a listening socket, would get the number of a
        # closed standard descriptor, and messages for standard error would go there.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    on_stop(lambda *_: os._exit(0))


def on_stop(handler: Callable[[int, Any], object]) -> None:
    """Call the handler on each stopping signal that is not ignored."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Block stopping signals in this process. A process that is started meanwhile blocks them until
    it calls release()."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Unblock the stopping signals."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def end(code: int) -> NoReturn:
    """End this process. The interpreter's own end would wait for names that are being looked up, as
    long as a name server is silent: libuv joins its threads, and none of them can be cancelled."""
    import logging

    logging.shutdown()  # writes what waits for standard error
    os._exit(code)
