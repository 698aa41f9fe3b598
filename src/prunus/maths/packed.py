"""A weight as mask words and its kept values: ``docs/packed.md`` has every byte."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..base.errors import CheckpointError, InputError, NumericalError, UnknownNameError

ROWS, WORD = 8, 32  # rows of a group; inputs of a mask word
PADDING = 64  # bytes behind the values, which kernels read and ignore
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INTEGERS = ("int8", "int4")
KINDS = (*FLOATS, *INTEGERS)
TOP = 127  # the largest level
LEVELS = (2, 7, 17, 32, 50, 72, 98, 127)  # of int4, for either sign; found by trial
MOST = 512  # inputs that share a scale: 512 · 127 · 32767 is the last that fits 32 bits
PARTS = ("masks", "values", "offsets", "levels", "scales")
PREFIX = "packed_"  # of the parts, as buffers of a module and in files


@dataclass(frozen=True)
class Values:
    """What the kept values are stored as.

    Attributes:
        kind: float32, bfloat16, float16, int8 or int4.
        group: inputs that share a scale, a multiple of 32 up to 512; 0: the whole row (int8 only).
            Floating kinds have none.

    >>> str(Values.of("int4"))
    'int4, groups of 64'
    """

    kind: str
    group: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind of values", self.kind, KINDS)
        if self.kind in FLOATS and self.group:
            raise InputError(f"{self.kind} values have no scales, so no groups; got {self.group}.")
        fits = self.group % WORD == 0 and WORD <= self.group <= MOST
        if not (fits or self.group == 0) or (self.kind == "int4" and not self.group):
            raise InputError(
                f"A group is a multiple of {WORD} inputs, at most {MOST}"
                f"{', or 0 for whole rows' if self.kind == 'int8' else ''}; got {self.group}."
            )

    @classmethod
    def of(cls, kind: str, group: int | None = None) -> Values:
        """Return the kind with its usual group: 64 for int4, whole rows for int8."""
        kind = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(kind, kind)
        return cls(kind, (64 if kind == "int4" else 0) if group is None else group)

    def __str__(self) -> str:
        scales = f", groups of {self.group}" if self.group else ", rows"
        return self.kind + (scales if self.kind in INTEGERS else "")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored values; int4 are nibbles of bytes."""
        return FLOATS.get(self.kind, torch.int8 if self.kind == "int8" else torch.uint8)

    @property
    def span(self) -> int:
        """Words that a kernel takes at once: those of a scale, or four."""
        return (self.group or 128) // WORD


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight (O, I), eight rows side by side.

    Row ``8g + r`` keeps input ``32w + i`` if bit i of ``masks_GWR[g, w, r]`` is set. The values of
    a group of rows lie one behind the other in the order of those bits: word by word, within a
    word row by row. Rows and inputs beyond the last are pruned.

    Attributes:
        masks_GWR: int32, (groups of rows, words, 8), read as unsigned.
        values_V: of the dtype of ``values``, with ``PADDING`` bytes of zeros behind them. int4: two
            in a byte, the low nibble first; those of eight rows and a group of inputs begin at a
            whole byte.
        offsets_G: int64 (groups + 1), where the values of each group begin, and the last end.
        levels_L: int8 (16,), what the nibbles of int4 stand for; None for other kinds.
        scales_GSR: bfloat16 (groups, spans, 8), or (groups, 1, 8) for whole rows; a weight is its
            level times its scale. None for floating kinds.
        values: what they are stored as.
        shape: (O, I).
    """

    masks_GWR: Tensor
    values_V: Tensor
    offsets_G: Tensor
    levels_L: Tensor | None
    scales_GSR: Tensor | None
    values: Values
    shape: tuple[int, int]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that there are, by their names in ``PARTS``."""
        parts = self.masks_GWR, self.values_V, self.offsets_G, self.levels_L, self.scales_GSR
        named = zip(PARTS, parts, strict=True)
        return {name: tensor for name, tensor in named if tensor is not None}

    def named(self, layer: str) -> dict[str, Tensor]:
        """All tensors by the names that they have in a file, and in the model's state."""
        return {f"{layer}.{PREFIX}{part}": tensor for part, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def dense(self) -> Tensor:
        """Return the weight (O, I): float kinds as they were, integers times scales in float32."""
        kept_GWRN = _bits(self.masks_GWR)
        values_K = self._values(kept_GWRN)
        out_GWRN = torch.zeros(kept_GWRN.shape, dtype=values_K.dtype, device=values_K.device)
        out_GWRN[kept_GWRN] = values_K
        if self.scales_GSR is not None:
            spread = self.values.span if self.values.group else kept_GWRN.shape[1]
            scales_GWR = self.scales_GSR.float().repeat_interleave(spread, 1)
            out_GWRN *= scales_GWR[:, : kept_GWRN.shape[1], :, None]
        outputs, inputs = self.shape
        return out_GWRN.transpose(1, 2).flatten(2).flatten(0, 1)[:outputs, :inputs].contiguous()

    def _values(self, kept_GWRN: Tensor) -> Tensor:
        """Return the kept values, or levels in float32, in the order of the stream."""
        if self.levels_L is None:
            found_K = self.values_V[: int(self.offsets_G[-1])]
            return found_K if self.values.kind in FLOATS else found_K.float()
        nibbles = torch.stack((self.values_V & 15, self.values_V >> 4), 1).flatten()
        counts = _counts(kept_GWRN, self.values.span)
        return self.levels_L.float()[nibbles[_nibbles_at(counts)].long()]


def pack(weight_OI: Tensor, values: Values) -> Packed:
    """Pack the nonzero entries of a weight; those that are NaN count as nonzero.

    Floating values are cast to their dtype. int8: ``s = max|w| / 127`` over a group, or a row, and
    ``round(w / s)``. int4: the nearest of ±LEVELS to ``w / s``: there is none at zero, which no
    kept weight is. Scales are rounded to bfloat16 first.

    Raises:
        NumericalError: NaN or inf, which integers cannot hold.
    """
    outputs, inputs = weight_OI.shape
    wide_OI = pad(weight_OI, (0, -inputs % WORD, 0, -outputs % ROWS))
    weight_GWRN = wide_OI.unflatten(0, (-1, ROWS)).unflatten(2, (-1, WORD)).transpose(1, 2)
    if values.kind in FLOATS:
        weight_GWRN = weight_GWRN.to(values.dtype)
    kept_GWRN = weight_GWRN != 0
    levels_L = scales_GSR = None
    if values.kind in INTEGERS:
        stored_GWRN, levels_L, scales_GSR = _integers(weight_GWRN, values)
        stored_K = stored_GWRN[kept_GWRN]
    else:
        stored_K = weight_GWRN[kept_GWRN]
    counts_GS = _counts(kept_GWRN, values.span)
    if values.kind == "int4":
        stored_K, counts_GS = _nibbled(stored_K, counts_GS), (counts_GS + 1) // 2
    ends_G = counts_GS.sum(1).cumsum(0)
    values_V = pad(stored_K, (0, PADDING // stored_K.itemsize))
    return Packed(
        _words(kept_GWRN),
        values_V,
        pad(ends_G, (1, 0)),
        levels_L,
        scales_GSR,
        values,
        (outputs, inputs),
    )


def _words(kept_GWRN: Tensor) -> Tensor:
    """Return the bits of each word as int32, input 0 in the lowest."""
    place_N = torch.ones((), dtype=torch.int64) << torch.arange(WORD)
    words = (kept_GWRN * place_N.to(kept_GWRN.device)).sum(-1)
    return (words - (words >= 2**31) * 2**32).to(torch.int32)


def _bits(masks_GWR: Tensor) -> Tensor:
    """Return which inputs each word keeps."""
    place_N = torch.arange(WORD, device=masks_GWR.device, dtype=torch.int32)
    bits: Tensor = masks_GWR[..., None] >> place_N & 1
    return bits.bool()


def _counts(kept_GWRN: Tensor, span: int) -> Tensor:
    """Return how many values each group of rows and span of words keeps: int64 (groups, spans)."""
    counts_GW = kept_GWRN.sum((2, 3))
    counts_GSW: Tensor = pad(counts_GW, (0, -counts_GW.shape[1] % span)).unflatten(1, (-1, span))
    return counts_GSW.sum(2)


def _nibbles_at(counts_GS: Tensor) -> Tensor:
    """Return the nibble where each value lies: behind an odd number of them one is left out."""
    counts = counts_GS.flatten()
    gaps = pad((counts % 2).cumsum(0)[:-1], (1, 0)).repeat_interleave(counts)
    return gaps + torch.arange(len(gaps), device=counts.device)


def _nibbled(codes_K: Tensor, counts_GS: Tensor) -> Tensor:
    """Return codes 0 to 15 as bytes."""
    size = int(((counts_GS + 1) // 2).sum())
    nibbles = torch.zeros(2 * size, dtype=torch.uint8, device=codes_K.device)
    nibbles[_nibbles_at(counts_GS)] = codes_K
    return nibbles[::2] + nibbles[1::2] * 16


def _integers(weight_GWRN: Tensor, values: Values) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return what is stored for each weight, kept or not, the levels of int4, and the scales."""
    if not weight_GWRN.isfinite().all():
        raise NumericalError(
            f"Weights that are NaN or inf cannot be stored as {values.kind}. Check the checkpoint, "
            "or take a floating kind."
        )
    words = weight_GWRN.shape[1]
    span = values.span if values.group else words
    filled = pad(weight_GWRN.float(), (0, 0, 0, 0, 0, -words % span)).unflatten(1, (-1, span))
    scales, levels_L = _stored(filled.abs().amax((2, 4), keepdim=True) / TOP), None
    if values.kind == "int8":
        stored = (filled / scales).round().clamp(-TOP, TOP).to(torch.int8)
    else:
        stored = _code(filled, scales)
        levels_L = torch.tensor([*(-x for x in reversed(LEVELS)), *LEVELS], dtype=torch.int8)
        levels_L = levels_L.to(filled.device)
    return stored.flatten(1, 2)[:, :words], levels_L, scales[:, :, 0, :, 0].to(torch.bfloat16)


def _code(weight: Tensor, scales: Tensor) -> Tensor:
    """Return the index of the level nearest to ``w / s``."""
    sizes = torch.tensor(LEVELS, device=weight.device)
    code = torch.bucketize((weight.abs() / scales).contiguous(), (sizes[1:] + sizes[:-1]) / 2)
    return torch.where(weight < 0, 7 - code, 8 + code).to(torch.uint8)


def _stored(scale: Tensor) -> Tensor:
    """Round scales to what a file holds, never to 0."""
    least = torch.finfo(torch.bfloat16).tiny
    return scale.clamp_min(least).to(torch.bfloat16).float()


def check(packed: Packed, name: str) -> None:
    """Check that tensors from a file belong together, so that they can be read at all.

    Raises:
        CheckpointError: a tensor of another shape or dtype; counts that do not fit the masks.
    """
    outputs, inputs = packed.shape
    values, groups, words = packed.values, -(-outputs // ROWS), -(-inputs // WORD)
    spans = -(-words // values.span) if values.group else 1
    wanted = {
        "masks": (torch.int32, (groups, words, ROWS)),
        "values": (values.dtype, (len(packed.values_V),)),
        "offsets": (torch.int64, (groups + 1,)),
        "levels": (torch.int8, (16,)),
        "scales": (torch.bfloat16, (groups, spans, ROWS)),
    }
    for part, tensor in packed.tensors.items():
        dtype, shape = wanted[part]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise _damaged(name, f"its {part} are {tensor.dtype} {tuple(tensor.shape)}")
    wants = {"scales": values.kind in INTEGERS, "levels": values.kind == "int4"}
    for part, wanted_here in wants.items():
        if (part in packed.tensors) != wanted_here:
            raise _damaged(name, f"{values.kind} has {'' if wanted_here else 'no '}{part}")
    room = len(packed.values_V) - PADDING // values.dtype.itemsize
    counts_GS = _ones(packed.masks_GWR, values.span)
    if values.kind == "int4":
        counts_GS = (counts_GS + 1) // 2
    ends_G = pad(counts_GS.sum(1).cumsum(0), (1, 0))
    if int(ends_G[-1]) != room or not torch.equal(packed.offsets_G, ends_G):
        raise _damaged(name, f"its masks keep {int(ends_G[-1])} values, but {room} are stored")


def _ones(masks_GWR: Tensor, span: int) -> Tensor:
    """Return how many bits each group of rows and span of words has: int64 (groups, spans)."""
    counts = masks_GWR.new_zeros(len(masks_GWR), -(-masks_GWR.shape[1] // span), dtype=torch.int64)
    for word in range(masks_GWR.shape[1]):
        m = masks_GWR[:, word]
        m = m - (m >> 1 & 0x55555555)
        m = (m & 0x33333333) + (m >> 2 & 0x33333333)
        m = m + (m >> 4) & 0x0F0F0F0F
        counts[:, word // span] += (m * 0x01010101 >> 24 & 0x3F).sum(1)
    return counts


def _damaged(name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{name} is damaged: {what}. Copy or export the checkpoint again.")
