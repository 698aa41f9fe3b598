"""The cycle model against a literal loop, and what must hold of any accelerator."""

import json
from math import ceil

import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.cli.main import app
from prunus.judge.cycles import simulate
from prunus.judge.vitcod import ViTCoD


def literal(mask_OI, as_published=False, width=64, height=64):
    """Entry by entry, threshold by threshold."""
    outputs, inputs = mask_OI.shape
    kept = mask_OI.tolist()
    column = [sum(row[i] for row in kept) for i in range(inputs)]
    threshold, best = 0.5, None
    for _ in range(5):
        dense = [i for i in range(inputs) if column[i] > threshold * outputs]
        held = sum(column[i] for i in dense)
        sparse, work = sum(column) - held, outputs * len(dense)
        share = int(width * work / (work + sparse))
        share = min(max(share, 1 if dense else 0), width - (1 if sparse else 0))
        first = (inputs if as_published else outputs) * len(dense)
        cycles = max(
            ceil(first / (share * height)) if dense else 0,
            ceil(sparse / ((width - share) * height)) if sparse else 0,
        )
        best = cycles if best is None else min(best, cycles)
        if held / sum(column) >= 0.6:
            threshold += 0.1
        elif held / sum(column) <= 0.4:
            threshold -= 0.1
        else:
            break
    return best


def mask(outputs, inputs, sparsity=0.5, uneven=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    share_I = (1 - sparsity + uneven * torch.randn(inputs, generator=generator)).clamp(0.02, 0.98)
    return torch.rand(outputs, inputs, generator=generator) < share_I


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("shape", [(96, 96), (160, 64), (33, 21)])
@pytest.mark.parametrize("elements", [4, 16])
def test_cycles_are_those_of_a_literal_loop(shape, sparsity, as_published, elements):
    mask_OI = mask(*shape, sparsity)
    found = ViTCoD(elements, elements, as_published)(mask_OI)
    assert found.cycles == literal(mask_OI, as_published, elements, elements)
    assert found.sparsity == pytest.approx(1 - float(mask_OI.float().mean()))


def test_wide_layers_are_cut_into_squares_as_published():
    mask_OI = mask(64, 160)
    parts = [literal(part_OI, True, 8, 8) for part_OI in mask_OI.split(64, 1)]
    assert ViTCoD(8, 8, as_published=True)(mask_OI).cycles == sum(parts)
    assert ViTCoD(8, 8)(mask_OI).cycles == literal(mask_OI, False, 8, 8)


@pytest.mark.parametrize(
    ("shape", "true", "published"),
    [((4096, 4096), 4096, 4096), ((11008, 4096), 11008, 10128), ((4096, 11008), 11008, 10128)],
)
def test_dense_cycles_are_table_4s_as_published_and_right_otherwise(shape, true, published):
    nothing_OI = torch.zeros(shape, dtype=torch.bool)
    assert ViTCoD()(nothing_OI).dense == true
    assert ViTCoD(as_published=True)(nothing_OI).dense == published


def test_a_llama_layer_lies_between_its_multiplications_and_dense():
    """Columns of unlike density go faster than even ones, at one sparsity: Table 4's point."""
    even, uneven = (ViTCoD()(mask(4096, 4096, 0.5, u)) for u in (0.0, 0.25))
    assert abs(even.sparsity - uneven.sparsity) < 0.01
    assert 2048 <= uneven.cycles < even.cycles < 4096
    assert uneven.speedup > even.speedup > 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (64, 64)])
def test_ends_of_the_range(shape):
    full, none = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    assert ViTCoD()(none).cycles == 0
    assert ViTCoD()(full).cycles == ViTCoD()(full).dense
    assert ViTCoD()(full).sparsity == 0


def test_the_table_of_a_checkpoint(tmp_path):
    for name in ("llama", "gpt2"):
        out = tmp_path / name
        prunus.prune(MODELS / name, method="wanda", samples=2, length=48, output=out)
        rows = {row["layer"]: row for row in simulate(out)}
        assert all(row["count"] in (3, 6) for row in rows.values())
        for row in rows.values():
            assert row["sparsity"] == pytest.approx(0.5, abs=0.01)
    found = CliRunner().invoke(app, ["simulate", str(tmp_path / "llama"), "--json"])
    said = json.loads(found.stdout)
    assert [row["layer"] for row in said["layers"]][:1] != []
    assert not said["as_published"]
    shown = CliRunner().invoke(app, ["simulate", str(tmp_path / "llama"), "--as-published"])
    assert "speed-up" in shown.stdout
    assert CliRunner().invoke(app, ["simulate", str(tmp_path)]).exit_code == 2
