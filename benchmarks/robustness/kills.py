"""Runs that are killed at random moments and resumed: is what comes out the same?

    python benchmarks/robustness/kills.py MODEL --kills 20

SIGKILL, each time at another moment of the run; then the same command with ``--resume``, maybe
killed again. The weights and reports must equal those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    chance = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills."))
    options = ["--method", given.method, "--samples", "64", "--length", "256", "--json"]
    command = [sys.executable, "-m", "prunus", "prune", given.model, *options, "--output"]
    begun = time.perf_counter()
    run(command, folder / "whole")
    whole = time.perf_counter() - begun
    expected = content(folder / "whole")
    print(f"undisturbed: {whole:.1f} s; {len(expected)} files", flush=True)

    kills = runs = 0
    while kills < given.kills:
        output = folder / f"run-{runs}"
        while not output.exists():
            resume = ["--resume"] if unfinished(output).exists() else []
            wait = chance.uniform(0, 1.1 * whole) if kills < given.kills else None
            ended = run(command, output, resume, wait)
            kills += ended == "killed"
            state = "done" if output.exists() else f"{done(output)} blocks done"
            print(f"{' '.join(resume) or 'start':8} {ended} ({state})", flush=True)
        equal = content(output) == expected and not unfinished(output).exists()
        runs += 1
        print(f"{kills} kills: {'same' if equal else 'DIFFERENT'}", flush=True)
        if not equal:
            sys.exit(1)
    print(f"{kills} kills in {runs} runs; every one ended the same")
    shutil.rmtree(folder)


def run(
    command: list[str], output: Path, resume: list[str] | None = None, wait: float | None = None
) -> str:
    process = subprocess.Popen(
        [*command, str(output), *(resume or [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return "killed"
    if process.returncode:
        sys.exit(errors.decode())
    return "ended"


def unfinished(output: Path) -> Path:
    return output.parent / f".{output.name}.unfinished"


def done(output: Path) -> int:
    return len(list(unfinished(output).glob("block-*.safetensors")))


def content(folder: Path) -> dict[str, str]:
    """Hash every file; the report without its times."""
    found = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if path.name == "pruning_report.json":
            report = json.loads(data)
            report.pop("seconds")
            for layer in report["layers"]:
                layer.pop("seconds")
            data = json.dumps(report).encode()
        if path.suffix != ".md":  # the card repeats the report
            found[path.name] = hashlib.sha256(data).hexdigest()
    return found


if __name__ == "__main__":
    main()
