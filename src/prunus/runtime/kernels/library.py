"""The compiled kernels, called without copies: pointers of contiguous CPU tensors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...base.errors import InputError
from ...maths.packed import KINDS, WORD, Packed

INTERFACE = 1
FILE = Path(__file__).with_name("_kernels.library")  # which build.py makes
CHOICE = "PRUNUS_KERNELS"  # an environment variable
SETS = ("avx512", "avx2", "neon", "portable")
NONE = "none"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST = 16  # inputs of one product


class Matrix(ctypes.Structure):
    """``Matrix`` of packed.h; the tensors must outlive it."""

    _fields_ = [
        ("masks", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("words", ctypes.c_int64),
        ("span", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("whole", ctypes.c_int32),
    ]

    @classmethod
    def of(cls, packed: Packed) -> Matrix:
        """Point at the tensors of a packed weight on the CPU."""
        outputs, inputs = packed.shape
        optional = packed.levels_L, packed.scales_GSR
        return cls(
            packed.masks_GWR.data_ptr(),
            packed.values_V.data_ptr(),
            packed.offsets_G.data_ptr(),
            *(None if tensor is None else tensor.data_ptr() for tensor in optional),
            outputs,
            inputs,
            -(-inputs // WORD),
            packed.values.span,
            KINDS.index(packed.values.kind),
            packed.values.group == 0,
        )


class Library:
    """The compiled kernels, one instruction set chosen.

    Attributes:
        name: of the instruction set.
    """

    def __init__(self, path: Path, wanted: str | None = None) -> None:
        found = ctypes.CDLL(str(path))
        if found.prunus_interface() != INTERFACE:
            raise InputError(f"{path} was built for another version of prunus; install it again.")
        found.prunus_choose.restype = found.prunus_built.restype = ctypes.c_char_p
        pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.prunus_multiply.argtypes = [
            pointer,
            pointer,
            long,
            pointer,
            pointer,
            integer,
            integer,
        ]
        found.prunus_expand.argtypes = [pointer, long, long, pointer, integer, integer]
        found.prunus_expand.restype = None
        chosen = found.prunus_choose(None if wanted is None else wanted.encode())
        if chosen is None:
            raise InputError(
                f"{CHOICE}={wanted}: these kernels do not run here. Built are "
                f"{', '.join(_built(found))}; leave {CHOICE} unset for the best that does."
            )
        self.name = str(chosen.decode())
        _hand_over_threads(found)
        self._multiply, self._expand = found.prunus_multiply, found.prunus_expand

    def multiply(self, matrix: Matrix, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return ``x Wᵀ + b`` for one to sixteen contiguous rows of a dtype in ``DTYPES``."""
        out_TO = x_TI.new_empty(len(x_TI), matrix.outputs)
        failed = self._multiply(
            ctypes.byref(matrix),
            x_TI.data_ptr(),
            len(x_TI),
            None if bias_O is None else bias_O.data_ptr(),
            out_TO.data_ptr(),
            DTYPES[x_TI.dtype],
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for the inputs of a packed layer")
        return out_TO

    def expand(self, matrix: Matrix, first: int, groups: int, out_RI: Tensor) -> None:
        """Write the dense rows of eight-row groups from ``first`` on into a contiguous tensor."""
        self._expand(
            ctypes.byref(matrix),
            first,
            groups,
            out_RI.data_ptr(),
            DTYPES[out_RI.dtype],
            torch.get_num_threads(),
        )


@cache
def library() -> Library | None:
    """Return the kernels of this process; None if there are none, or ``PRUNUS_KERNELS=none``.

    Raises:
        InputError: ``PRUNUS_KERNELS`` names kernels that do not run here.
    """
    wanted = os.environ.get(CHOICE) or None
    if wanted == NONE:
        return None
    if wanted is not None and wanted not in SETS:
        raise InputError(f"{CHOICE} is {', '.join(SETS)} or {NONE}; got {wanted}.")
    if not FILE.exists():
        if wanted is not None:
            raise InputError(
                f"{CHOICE}={wanted}: prunus was installed without its kernels. Install a C "
                "compiler and run python -m prunus.runtime.kernels.build."
            )
        return None
    return Library(FILE, wanted)


def _built(found: ctypes.CDLL) -> Sequence[str]:
    names = [found.prunus_built(i) for i in range(len(SETS))]
    return [name.decode() for name in names if name is not None]


def _hand_over_threads(found: ctypes.CDLL) -> None:
    """Give the kernels the threads that torch has: a second pool would fight with it.

    Where they are not found, one thread computes.
    """
    place = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            torch_cpu = ctypes.CDLL(str(place / name))
            pool = torch_cpu.GOMP_parallel, torch_cpu.omp_get_thread_num
            found.prunus_threads(
                *(ctypes.cast(f, ctypes.c_void_p) for f in (*pool, torch_cpu.omp_get_num_threads))
            )
            return
        except (OSError, AttributeError):
            continue
