"""``python -m helpers.command``: the command line without its last look in a fresh process.

For tests that start several processes and judge what these leave by themselves. DIES is a rank and
a file: that process ends behind the second block, once the file is there and unless torchrun has
started it again.
"""

import os
import signal
from pathlib import Path

from prunus.__main__ import main
from prunus.judge import reload
from prunus.model.replay import Recording

ADVANCE = Recording.advance


def die(recording, index, *more):
    """SIGKILL, which no handler sees."""
    if index == 1 and Path(os.environ["DIES"].split(":", 1)[1]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return ADVANCE(recording, index, *more)


def prepare():
    """Make the process one that dies, where it shall."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" and os.environ.get("DIES", "").startswith(f"{os.environ.get('RANK')}:"):
        Recording.advance = die


if __name__ == "__main__":
    reload.check = lambda *args: None
    prepare()
    main()
