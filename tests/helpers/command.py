"""``python -m helpers.command``: the command line without its last look in a fresh process.

For tests that start several processes and judge what these leave by themselves.
"""

from prunus.__main__ import main
from prunus.judge import reload

if __name__ == "__main__":
    reload.check = lambda *args: None
    main()
