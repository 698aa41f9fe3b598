"""Compiles the kernels when the package is built or installed, where there is a C compiler."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("src/prunus/runtime/kernels")


class Kernels(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the library beside its sources; a wheel that has it is for this platform alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; without a compiler, say what that means and go on."""
        builder = runpy.run_path(str(Path(self.root) / KERNELS / "build.py"))
        try:
            builder["build"]()
        except RuntimeError as error:
            (Path(self.root) / KERNELS / builder["NAME"]).unlink(missing_ok=True)  # an older one
            self.app.display_warning(
                f"prunus is built without its kernels, so packed models will be slow: {error}."
            )
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
