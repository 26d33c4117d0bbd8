"""The command `retain` as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys


def hearing():
    """Undo what whoever runs the tests in the background has set: that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(*words):
    """The command `retain`, in a group of processes of its own, as behind a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "retain", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hearing,
    )
