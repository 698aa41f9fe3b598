"""Processes that come from a server which has imported all that they need, and has run nothing.

A fresh interpreter imports torch and transformers for 4 to 9 seconds. A fork of the tests' own
process would be as quick, but other threads live there, and a lock that one of them holds at that
moment stays locked in the fork for ever.
"""

import faulthandler
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from types import SimpleNamespace

from helpers.command import prepare
from prunus.__main__ import main
from prunus.judge import reload, timed

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["prunus.__main__", "prunus.judge.timed", "transformers.models.llama.modeling_llama"]
)
PATIENCE = 300  # seconds; a process that takes longer says where it is, and ends


class Fork:
    """A process that calls a function of a module; what it prints is read when it has ended."""

    def __init__(self, function, *arguments, env=None):
        self._files = [tempfile.NamedTemporaryFile("r") for _ in range(2)]
        names = [os.devnull, *(file.name for file in self._files)]
        self._process = _started(_printing, names, function, arguments, env)

    def ended(self):
        """Wait for its end: the exit code, what it printed, its errors."""
        self._process.join()
        said = []
        for file in self._files:
            said.append(file.read())
            file.close()
        return self._process.exitcode, *said

    def alive(self):
        return self._process.is_alive()

    def kill(self):
        self._process.kill()


def run_code(command, *, cwd, **_):
    """Stand in for ``subprocess.run`` of ``python -c``."""
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
        orders, own_orders = SERVER.Pipe(duplex=False)
        own_answers, answers = SERVER.Pipe(duplex=False)
        self._process = _started(_serving, orders, answers)
        self.stdin = os.fdopen(os.dup(own_orders.fileno()), "w")
        self.stdout = os.fdopen(os.dup(own_answers.fileno()))
        for end in (orders, own_orders, own_answers, answers):
            end.close()

    def kill(self):
        self._process.kill()

    def communicate(self):
        self._process.join()
        self.stdin.close()
        self.stdout.close()


def _started(target, *arguments):
    process = SERVER.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def _printing(names, function, arguments, env):
    places = [os.open(name, os.O_RDWR) for name in names]
    os.environ.update(env or {})
    reload.check = lambda *args: None  # as in the tests' own process
    _call(lambda: function(*arguments), places)


def _serving(orders, answers):
    _call(timed.main, [orders.fileno(), answers.fileno(), os.open(os.devnull, os.O_WRONLY)])


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
        faulthandler.dump_traceback_later(PATIENCE, exit=True, file=sys.stderr)
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
