"""``python -m helpers.command``: the command line without its last look in a fresh process.

For tests that start several processes and judge what these leave by themselves. The process of the
rank that DIES names ends behind the second block, unless torchrun has started it again.
"""

import os
import signal

from prunus.__main__ import main
from prunus.judge import reload
from prunus.model.replay import Recording

ADVANCE = Recording.advance


def die(recording, index, *more):
    """SIGKILL, which no handler sees, when the first block has been written."""
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return ADVANCE(recording, index, *more)


def prepare():
    """Make the process one that dies, where it shall."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" and os.environ.get("DIES") == os.environ.get("RANK", "0"):
        Recording.advance = die


if __name__ == "__main__":
    reload.check = lambda *args: None
    prepare()
    main()
