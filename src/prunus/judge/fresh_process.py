"""Run code on a checkpoint in a fresh interpreter, which sees what any later user will see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

KILLED = -9  # SIGKILL, which some systems do not have


def asked(code: str, folder: Path, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON that ``code`` prints last; None if it fails, and the last line of its error.

    ``sys.argv`` has the folder, then ``arguments``. The code runs in that folder, not in the
    user's, whose files ``python -c`` could import.
    """
    path = folder.resolve()
    command = [sys.executable, "-c", code, str(path), *arguments]
    run = subprocess.run(command, cwd=path, capture_output=True, text=True)
    if run.returncode == KILLED:
        return None, "it was ended by SIGKILL, which the system sends when memory runs out"
    if run.returncode != 0:
        return None, (run.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(run.stdout.strip().splitlines()[-1]), ""
