"""Lets a CUDA build of torch run on a machine without CUDA, and without NVIDIA's libraries.

On Linux PyPI has no torch 2.6 for the CPU alone. Its wheel (0.8 GB) asks for 2.5 GB of libraries
that the loader must find and that nothing on a CPU ever calls. Empty ones take their place: each
function that torch would look up returns "no CUDA-capable device", so torch.cuda.is_available() is
False.

Does nothing where torch imports as it is: a CPU build, or one with NVIDIA's libraries beside it.
Needs gcc and nm.

    python .ci/without_cuda.py    # with the python of the environment to change
"""

import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
PREFIXES = ("curand", "cusparse", "nccl")  # of libraries whose functions carry no version
LIB = Path(sysconfig.get_path("platlib")) / "torch" / "lib"


def output(*command: object) -> str:
    """Return what a program prints."""
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    ).stdout


def missing() -> list[str]:
    """Libraries that the loader does not find for torch."""
    lines = output("ldd", LIB / "libtorch_python.so").splitlines()
    return sorted({line.split()[0] for line in lines if line.endswith("=> not found")})


def wanted(libraries: list[str]) -> dict[str, set[str]]:
    """List the functions that torch asks of each library; unversioned ones under no name."""
    found = defaultdict[str, set[str]](set)
    for word in output("nm", "-D", "--undefined-only", *LIB.glob("lib*.so")).split():
        name, _, library = word.replace("@@", "@").partition("@")
        if library in libraries or (not library and name.startswith(PREFIXES)):
            found[library].add(name)
    return found


def source(functions: set[str]) -> str:
    """C code of functions that say that there is no device."""
    lines = []
    for name in sorted(functions):
        if name.startswith("cudaGetError"):
            lines.append(f'const char *{name}(void) {{ return "no CUDA on this machine"; }}')
        elif name == "__cudaRegisterFatBinary":  # called as torch is loaded, for a handle
            lines.append(f"static void *handle[1]; void **{name}(void) {{ return handle; }}")
        else:
            lines.append(f"int {name}(void) {{ return {NO_DEVICE}; }}")
    return "\n".join(lines) + "\n"


def build(library: str, functions: set[str], versioned: bool) -> None:
    """Compile one; the loader compares the versions of its functions, where they have any."""
    command = ["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", "-x", "c", "-"]
    command += ["-o", str(LIB / library), f"-Wl,-soname,{library}"]
    if versioned:
        script = LIB / f"{library}.map"
        script.write_text(f"{library} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, input=source(functions), check=True, text=True)


def main() -> int:
    """Build what is missing, then import torch to see whether it is enough."""
    libraries = missing() if (LIB / "libtorch_python.so").exists() else []
    functions = wanted(libraries)
    for library in libraries:
        own = functions.get(library) or functions[""]  # one of each name is enough for the loader
        build(library, own, versioned=library in functions)
    return subprocess.run([sys.executable, "-c", "import torch"]).returncode


if __name__ == "__main__":
    sys.exit(main())
