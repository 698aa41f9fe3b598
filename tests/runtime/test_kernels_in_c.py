"""Every instruction set's kernels, here and under sanitizers, against loops in double precision.

What this processor lacks runs in an emulation of its intrinsics (``kernels/emulated``);
``kernels/driver.c`` builds the matrices and compares. Neither needs Python or torch.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prunus.runtime.kernels import build

SOURCES = Path(build.__file__).parent
TESTS = Path(__file__).parent / "kernels"
CC = build.compiler()
MACHINE = platform.machine().lower()

FLAGS = [*build.FLAGS, "-O1", "-Wall", "-Wextra", "-Werror"]
EMULATED = f"-I{TESTS / 'emulated'}"
AVX512 = [EMULATED, "-Wno-psabi", "-DRUNS=1", "-DIN_REGISTER(v)="]
AVX512 += [f"-D__AVX512{feature}__" for feature in ("VBMI", "VBMI2", "VNNI", "VL", "BW")]
NEON = [] if MACHINE in build.ARM else [EMULATED, "-D__aarch64__"]
KERNELS = {"avx512": AVX512, "neon": NEON, "portable": []}
if MACHINE in build.X86:
    KERNELS["avx2"] = build.AVX2
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


def cc(*arguments: str | Path) -> None:
    done = subprocess.run([*CC, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def driver(folder: Path, *flags: str, sources: Path = SOURCES, kernels=KERNELS) -> Path:
    """Compile the driver with these kernels, each with its flags; a warning is an error."""
    flags = (f"-I{sources}", *FLAGS, *flags)
    parts = {sources / f"{name}.c": own for name, own in kernels.items()}
    parts[sources / "api.c"] = [f"-DWITH_{name.upper()}" for name in kernels]
    parts[TESTS / "driver.c"] = []
    objects = [folder / f"{source.stem}.o" for source in parts]
    for (source, own), to in zip(parts.items(), objects, strict=True):
        cc(*flags, *own, "-c", source, "-o", to)
    cc(*flags, *objects, "-lm", "-o", folder / "driver")
    return folder / "driver"


def run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program], capture_output=True, text=True, timeout=300)


def equal(program: Path) -> set[str]:
    """Return the names of the kernels that ran and were right."""
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    return set(done.stdout.removeprefix("equal:").split())


def test_every_instruction_set_equals_a_loop(tmp_path):
    assert equal(driver(tmp_path)) >= {"avx512", "neon", "portable"}


def test_this_processors_own_avx512_equals_a_loop(tmp_path):
    if MACHINE not in build.X86:
        pytest.skip("another processor")
    own = {"avx512": build.AVX512, "portable": []}
    if "avx512" not in equal(driver(tmp_path, kernels=own)):
        pytest.skip("no AVX-512 here")


def test_the_same_under_sanitizers(tmp_path):
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    try:
        cc(*SANITIZERS, tmp_path / "empty.c", "-o", tmp_path / "empty")
    except AssertionError:
        pytest.skip("no libraries of the sanitizers")
    assert equal(driver(tmp_path, *SANITIZERS)) >= {"avx512", "neon", "portable"}


@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "seen"),
    [
        ("portable", "sums[r][0] += ", "sums[r][0] -= ", "multiply 1 inputs"),
        ("avx512", "shifts[n % 2]", "shifts[0]", "multiply 1 inputs"),
        ("avx512", "masks + r, values", "masks, values", "multiply 1 inputs"),
        ("neon", "vshrq_n_u8(v, 4)", "vshrq_n_u8(v, 3)", "expand to f32"),
        ("portable", "a[2 * lane + 1] *", "a[2 * lane] *", r"multiply ([2-9]|1\d) inputs"),
    ],
)
def test_a_broken_kernel_is_noticed(tmp_path, kernel, right, wrong, seen):
    sources = tmp_path / "sources"
    shutil.copytree(SOURCES, sources)
    text = (sources / f"{kernel}.c").read_text()
    assert right in text
    (sources / f"{kernel}.c").write_text(text.replace(right, wrong))
    kernels = {name: KERNELS[name] for name in {kernel, "portable"}}
    done = run(driver(tmp_path, sources=sources, kernels=kernels))
    assert done.returncode == 1
    assert re.match(f"{kernel}: {seen}", done.stdout)
