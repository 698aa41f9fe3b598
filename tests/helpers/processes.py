"""The environment of processes that tests start."""

import os
from pathlib import Path

TESTS = Path(__file__).parent.parent
PATHS = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)}
