"""Compile the kernels next to their sources: ``python -m prunus.runtime.kernels.build``.

The package's own build does it where it finds a C compiler; without one everything works through
torch, slower. Nothing but the standard library is imported here.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NAME = "_kernels.library"
FLAGS = "-O3 -std=gnu11 -fPIC -ffp-contract=fast -fvisibility=hidden".split()
AVX2 = "-mavx2 -mfma -mf16c -mpopcnt -mbmi -mbmi2".split()
TUNED = {"avx2": ["-mtune=znver3"]}  # a fifth faster for integers, where it was measured (Zen 3)
AVX512 = [*AVX2, *(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl", "vbmi", "vbmi2", "vnni"))]
X86 = {"x86_64", "amd64"}
ARM = {"aarch64", "arm64"}


def compiler() -> list[str] | None:
    """Return the command of a C compiler: ``CC``, else cc, gcc or clang; None if there is none."""
    if named := os.environ.get("CC"):
        return shlex.split(named)
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def build(folder: Path = HERE) -> Path:
    """Compile the library into a folder, as a whole or not at all.

    An instruction set that the compiler does not know is left out.

    Raises:
        RuntimeError: no compiler, or it fails; with what it said.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("no C compiler was found (cc, gcc, clang, or the one that CC names)")
    with tempfile.TemporaryDirectory() as scratch:
        objects, sets = [_compiled(command, "portable", [], scratch)], []
        for name, flags in _sets():
            try:
                objects.append(_best(command, name, flags, scratch))
                sets.append(f"-DWITH_{name.upper()}")
            except RuntimeError as error:
                print(f"prunus: kernels for {name} are left out: {error}", file=sys.stderr)
        objects.append(_compiled(command, "api", sets, scratch))
        made = Path(scratch) / NAME
        _run([*command, "-shared", *objects, "-lm", "-o", str(made)])
        beside = folder / f".{os.getpid()}{NAME}"  # renamed: a process may have the old one open
        shutil.copyfile(made, beside)
        beside.replace(folder / NAME)
    return folder / NAME


def _sets() -> list[tuple[str, list[str]]]:
    """Return the instruction sets of this kind of processor, with the flags that they need."""
    machine = platform.machine().lower()
    if machine in X86:
        return [("avx2", AVX2), ("avx512", AVX512)]
    return [("neon", [])] if machine in ARM else []


def _best(command: list[str], name: str, flags: list[str], scratch: str) -> str:
    """Compile as tuned by measurement, or without that where the compiler is older."""
    try:
        return _compiled(command, name, [*flags, *TUNED.get(name, [])], scratch)
    except RuntimeError:
        return _compiled(command, name, flags, scratch)


def _compiled(command: list[str], name: str, flags: list[str], scratch: str) -> str:
    made = str(Path(scratch) / f"{name}.o")
    _run([*command, *FLAGS, *flags, "-c", str(HERE / f"{name}.c"), "-o", made])
    return made


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise RuntimeError(said[0].strip()[:200])


if __name__ == "__main__":
    try:
        print(build())
    except RuntimeError as failed:
        sys.exit(f"prunus: the kernels were not built: {failed}")
