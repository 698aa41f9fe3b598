"""Every instruction set's kernels, here and under sanitizers, against loops in double precision.

What this processor lacks runs in an emulation of its intrinsics (``kernels/emulated``);
``kernels/driver.c`` builds the matrices and compares. Neither needs Python or torch.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import prunus

SOURCES = Path(prunus.__file__).parent / "runtime/kernels"
TESTS = Path(__file__).parent / "kernels"
CC = shutil.which("cc")
X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM = platform.machine().lower() in ("aarch64", "arm64")

FLAGS = ["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
EMULATED = f"-I{TESTS / 'emulated'}"
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mpopcnt", "-mbmi", "-mbmi2"]
FEATURES = ("VBMI2", "VNNI", "BF16", "VL", "BW")
AVX512 = [EMULATED, "-Wno-psabi", "-DRUNS=1", "-DIN_REGISTER(v)="]
AVX512 += [f"-D__AVX512{feature}__" for feature in FEATURES]
KERNELS = {"avx512": AVX512, "neon": [] if ARM else [EMULATED, "-D__aarch64__"], "portable": []}
if X86:
    KERNELS["avx2"] = AVX2
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


def compile_(*arguments: str | Path) -> None:
    done = subprocess.run([str(CC), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build(folder: Path, *flags: str, sources: Path = SOURCES, kernels=tuple(KERNELS)) -> Path:
    """Compile the driver with these kernels; a warning is an error."""
    flags = (f"-I{sources}", *FLAGS, *flags)
    parts = {sources / f"{name}.c": KERNELS[name] for name in kernels}
    parts[sources / "api.c"] = [f"-DWITH_{name.upper()}" for name in kernels]
    parts[TESTS / "driver.c"] = []
    objects = [folder / f"{source.stem}.o" for source in parts]
    for (source, own), to in zip(parts.items(), objects, strict=True):
        compile_(*flags, *own, "-c", source, "-o", to)
    compile_(*flags, *objects, "-lm", "-o", folder / "driver")
    return folder / "driver"


def run(driver: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([driver], capture_output=True, text=True, timeout=300)


def equal(driver: Path) -> set[str]:
    """Return the names of the kernels that ran and were right."""
    done = run(driver)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.removeprefix("equal:").split())


def test_every_instruction_set_equals_a_loop(tmp_path):
    assert equal(build(tmp_path)) >= {"avx512", "neon", "portable"}


def test_the_same_under_sanitizers(tmp_path):
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    try:
        compile_(*SANITIZERS, tmp_path / "empty.c", "-o", tmp_path / "empty")
    except AssertionError:
        pytest.skip("no libraries of the sanitizers")
    assert equal(build(tmp_path, *SANITIZERS)) >= {"avx512", "neon", "portable"}


@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "seen"),
    [
        ("portable", "sums[r][0] += ", "sums[r][0] -= ", "multiply 1 inputs"),
        ("neon", "vshrq_n_u8(v, 4)", "vshrq_n_u8(v, 3)", "expand to f32"),
    ],
)
def test_a_broken_kernel_is_noticed(tmp_path, kernel, right, wrong, seen):
    sources = tmp_path / "sources"
    shutil.copytree(SOURCES, sources)
    text = (sources / f"{kernel}.c").read_text()
    assert right in text
    (sources / f"{kernel}.c").write_text(text.replace(right, wrong))
    done = run(build(tmp_path, sources=sources, kernels=dict.fromkeys((kernel, "portable"))))
    assert done.returncode == 1
    assert done.stdout.startswith(f"{kernel}: {seen}")
