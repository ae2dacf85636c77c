"""Threads that leave the program's signals alone; knows nothing of what they do."""

import signal
import threading

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}


def start_deaf(thread: threading.Thread) -> None:
    """Start ``thread`` with every signal blocked but those that its own faults raise.

    Python runs handlers in the main thread alone. If the kernel gives a signal to another one, the handler waits until
    the main thread does something, and a main thread that is blocked in read(2) may never: Ctrl-C gets lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
