"""Devices and dtypes by name: where, and in which precision, to compute."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch

from .errors import InputError, UnknownNameError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def checked_dtype(name: str) -> Dtype:
    """Return the dtype of that name, or raise UnknownNameError."""
    if name not in get_args(Dtype):
        raise UnknownNameError("dtype", name, get_args(Dtype))
    return cast(Dtype, name)


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "cuda:0"]) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch sees no CUDA device. Use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: this torch sees {torch.cuda.device_count()} CUDA devices, counted "
            "from 0."
        )
    return device
