"""``python -m prunus``, and the command ``prunus``."""

from __future__ import annotations

import os
from signal import SIG_IGN, SIGINT, default_int_handler, getsignal, signal

INTERRUPTED = 128 + SIGINT  # exit code


def main() -> None:
    """Run the command line. Ctrl-C at any moment ends it with 130 and no traceback."""
    heeded = getsignal(SIGINT) is default_int_handler  # unlike in the background of a script
    if heeded:  # nothing is begun before all is imported, so nothing has to be tidied up
        signal(SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from .cli.main import app

    if heeded:
        signal(SIGINT, default_int_handler)
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    finally:
        if heeded:
            signal(SIGINT, SIG_IGN)  # the interpreter ends; its own threads must not say so


if __name__ == "__main__":
    main()
