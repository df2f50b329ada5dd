"""Ends this process when the one that started it is gone."""

import os
import signal
import threading
import time

POLL_S = 0.5
GRACE_S = 5.0


def end_with_parent() -> None:
    """Watch the parent process from a thread; without it, stop politely and then at once.

    Polled, because ``PR_SET_PDEATHSIG`` fires when the starting *thread* ends.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
