"""Processes that are forked from the one of the tests, which has imported all that they need.

A fresh interpreter imports torch and transformers for 4 to 9 seconds.
"""

import os
import signal
import socket
import sys
import tempfile
import traceback
from types import SimpleNamespace

from helpers.command import prepare
from prunus.__main__ import main
from prunus.judge import timed


class Fork:
    """A process that calls a function; what it prints is read when it has ended."""

    def __init__(self, function, *arguments, env=None):
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(env or {})
            places = [file.fileno() for file in self._files]
            _call(lambda: function(*arguments), [os.open(os.devnull, os.O_RDONLY), *places])

    def ended(self):
        """Wait for its end: the exit code, what it printed, its errors."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = []
        for file in self._files:
            file.seek(0)
            said.append(file.read())
            file.close()
        return code, *said

    def alive(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


def run_code(command, *, cwd, **_):
    """Stand in for ``subprocess.run`` of ``python -c``, in a fork."""
    assert command[1] == "-c"
    code, said, errors = Fork(_fresh, command[2], ["-c", *command[3:]], cwd).ended()
    return SimpleNamespace(returncode=code, stdout=said, stderr=errors)


def command(*words, env=None):
    """Start ``prunus`` with these words."""
    return Fork(_prunus, [str(word) for word in words], env=env)


def together(size, start):
    """Start processes as ``torchrun`` does: ``start(env=…)`` for each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [start(env={**shared, **rank}) for rank in ranks]


class ForkedTimed:
    """Stands in for the process of ``prunus.judge.timed`` that ``prunus bench`` starts."""

    def __init__(self, command, **_):
        assert command[1:] == ["-m", "prunus.judge.timed"]
        (orders, own_orders), (own_answers, answers) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _call(timed.main, [orders, answers, os.open(os.devnull, os.O_WRONLY)])
        os.close(orders)
        os.close(answers)
        self.stdin, self.stdout = os.fdopen(own_orders, "w"), os.fdopen(own_answers)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self):
        os.waitpid(self.pid, 0)
        self.stdin.close()
        self.stdout.close()


def _prunus(words):
    sys.argv = ["prunus", *words]
    prepare()
    main()


def _fresh(code, arguments, folder):
    os.chdir(folder)
    sys.argv = arguments
    exec(code, {"__name__": "__main__"})


def _call(function, streams):
    """Call it with these file descriptors as stdin, stdout and stderr, and end this process."""
    code = 1
    try:
        for place, given in enumerate(streams):
            os.dup2(given, place)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        function()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
