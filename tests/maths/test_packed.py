"""Packed weights against a loop over bits, and what damaged ones are told apart by."""

import math
import struct
from dataclasses import replace

import pytest
import torch

from prunus.base.errors import CheckpointError, InputError, NumericalError, UnknownNameError
from prunus.maths.packed import LEVELS, PADDING, Packed, Values, check, pack

SHAPES = [(1, 1), (8, 32), (7, 31), (9, 33), (16, 64), (5, 200), (33, 100)]
KINDS = [
    *(Values.of(name) for name in ("float32", "bfloat16", "float16", "int8", "int4")),
    Values("int8", 32), Values("int8", 512), Values("int4", 32), Values("int4", 512),
]  # fmt: skip
SIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def sparse(shape, zeros, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return (weight * (torch.rand(shape, generator=generator) >= zeros)).to(dtype)


def by_hand(packed: Packed) -> list[list[float]]:
    """The dense weight, read bit by bit from bytes as docs/packed.md describes them."""
    outputs, inputs = packed.shape
    kind, span = packed.values.kind, packed.values.span
    masks = [m & 0xFFFFFFFF for m in packed.masks_GWR.flatten().tolist()]
    raw = packed.values_V.view(torch.uint8).tolist()
    words = math.ceil(inputs / 32)
    out = [[0.0] * inputs for _ in range(outputs)]
    for group in range(math.ceil(outputs / 8)):
        at = packed.offsets_G[group].item() * (1 if kind == "int4" else SIZE[kind]) * 2  # nibbles
        for word in range(words):
            if kind == "int4" and word % span == 0:
                at += at % 2  # to a whole byte
            for row in range(8):
                mask = masks[(group * words + word) * 8 + row]
                for bit in range(32):
                    if not mask >> bit & 1:
                        continue
                    if kind == "int4":
                        value = packed.levels_L[raw[at // 2] >> 4 * (at % 2) & 15].item()
                        at += 1
                    else:
                        chunk = bytes(raw[at // 2 : at // 2 + SIZE[kind]])
                        value = number(chunk, kind)
                        at += 2 * SIZE[kind]
                    if packed.scales_GSR is not None:
                        where = word // span if packed.values.group else 0
                        value *= packed.scales_GSR[group, where, row].item()
                    out[8 * group + row][32 * word + bit] = value
    return out


def number(chunk, kind):
    if kind == "bfloat16":
        return struct.unpack("<f", b"\0\0" + chunk)[0]
    return struct.unpack({"float32": "<f", "float16": "<e", "int8": "<b"}[kind], chunk)[0]


@pytest.mark.parametrize("zeros", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("values", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bytes_are_what_the_format_says(shape, values, zeros):
    packed = pack(sparse(shape, zeros), values)
    check(packed, "w")
    dense = packed.dense()
    assert torch.equal(dense.double(), torch.tensor(by_hand(packed), dtype=torch.float64).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_come_back_bit_for_bit(dtype):
    weight = sparse((19, 77), 0.5, dtype=dtype)
    weight[3, 5], weight[4, 6], weight[5, 7] = math.nan, math.inf, torch.finfo(dtype).tiny
    dense = pack(weight, Values.of(str(dtype).removeprefix("torch."))).dense()
    assert dense.dtype == dtype
    weight[weight == 0] = 0  # no −0
    assert torch.equal(dense.view(torch.uint8), weight.view(torch.uint8))


def test_a_negative_zero_is_pruned():
    packed = pack(torch.tensor([[-0.0, 1.0]]), Values("float32"))
    assert packed.masks_GWR[0, 0].tolist() == [2] + [0] * 7


def test_int8_is_the_nearest_step_of_the_largest_weight():
    weight = sparse((9, 70), 0.4)
    packed = pack(weight, Values("int8", 32))
    for row in range(9):
        for start in range(0, 70, 32):
            part = weight[row, start : start + 32]
            step = (part.abs().max() / 127).bfloat16().float()
            expected = (part / step).round().clamp(-127, 127) * step
            assert torch.equal(packed.dense()[row, start : start + 32], expected)


def test_int4_is_the_nearest_level_and_never_zero():
    weight = sparse((9, 70), 0.4)
    dense = pack(weight, Values("int4", 32)).dense()
    assert torch.equal(dense != 0, weight != 0)
    for row in range(9):
        for start in range(0, 70, 32):
            part = weight[row, start : start + 32]
            step = (part.abs().max() / 127).bfloat16().float()
            levels = torch.tensor([*(-x for x in LEVELS), *LEVELS]) * step
            distance = (part[:, None] - levels).abs().amin(1)
            found = (part - dense[row, start : start + 32]).abs()
            assert torch.allclose(found[part != 0], distance[part != 0], atol=1e-7)


def test_a_row_of_zeros_has_a_scale_that_can_be_divided_by():
    packed = pack(torch.zeros(8, 64), Values("int4", 32))
    assert (packed.scales_GSR > 0).all()
    assert not packed.dense().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_integers_refuse_what_is_not_finite(bad):
    weight = sparse((8, 32), 0.5)
    weight[2, 3] = bad
    with pytest.raises(NumericalError, match="NaN or inf cannot be stored as int8"):
        pack(weight, Values("int8"))


def test_bytes_per_weight():
    """At 2:4: half of the values, a bit for each mask, two bytes for a scale."""
    weight = torch.randn(64, 1024)
    weight.view(64, -1, 4)[:, :, 1::2] = 0
    count = weight.numel()
    for values, bits in [("float32", 17), ("bfloat16", 9), ("int8", 5), ("int4", 3.25)]:
        packed = pack(weight, Values.of(values))
        beside = packed.offsets_G.nbytes + PADDING + 16
        per_row = 64 * 2 if values == "int8" else 0
        assert packed.nbytes == pytest.approx(count * bits / 8 + beside + per_row, abs=16)


@pytest.mark.parametrize(
    ("kind", "group", "said"),
    [
        ("float32", 32, "float32 values have no scales"),
        ("int4", 0, "a multiple of 32 inputs, at most 512; got 0"),
        ("int8", 48, "or 0 for whole rows; got 48"),
        ("int8", 1024, "got 1024"),
    ],
)
def test_groups_that_there_are_not(kind, group, said):
    with pytest.raises(InputError, match=said):
        Values(kind, group)


def test_kinds_that_there_are_not():
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        Values.of("int9")


def damaged():
    packed = pack(sparse((20, 100), 0.5), Values("int4", 32))
    masks = packed.masks_GWR.clone()
    masks[1, 2, 3] ^= 1
    offsets = packed.offsets_G.clone()
    offsets[1] += 1
    return {
        "a bit of a mask": replace(packed, masks_GWR=masks),
        "an offset": replace(packed, offsets_G=offsets),
        "values cut off": replace(packed, values_V=packed.values_V[:-3]),
        "no values at all": replace(packed, values_V=packed.values_V[:0]),
        "masks of another shape": replace(packed, masks_GWR=packed.masks_GWR[:, :-1]),
        "scales of another dtype": replace(packed, scales_GSR=packed.scales_GSR.float()),
        "no scales": replace(packed, scales_GSR=None),
        "no levels": replace(packed, levels_L=None),
        "another shape": replace(packed, shape=(20, 300)),
        "floats with levels": replace(packed, values=Values("int8", 32)),
    }


@pytest.mark.parametrize("what", damaged())
def test_damage_is_named(what):
    with pytest.raises(CheckpointError, match=r"model\.layer is damaged: "):
        check(damaged()[what], "model.layer")
