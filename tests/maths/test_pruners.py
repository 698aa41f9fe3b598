import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from helpers.models import GATED, load_tiny
from helpers.problems import optimum, problem
from prunus.base.errors import UnsupportedModelError
from prunus.maths.patterns import NM, Unstructured, removed
from prunus.maths.pruners import MRP, Compose, DaSS, EachLayer, InOrder
from prunus.maths.pruners.sparsegpt import block_sparsity
from prunus.maths.scores import DaSS as DaSSScore
from prunus.maths.scores import Magnitude, Wanda
from prunus.maths.stats import ColumnNorm, TokenSample, gather
from prunus.methods.build import build_method
from prunus.model.inspect import inspect, start
from prunus.run.loop import prune_blocks
from prunus.run.observer import Silent


@dataclass(frozen=True)
class Reverse:
    """A permutation: the columns backwards."""

    def __call__(self, score_OI, pattern, sparsity):
        return torch.arange(score_OI.shape[1]).flip(0)


@dataclass(frozen=True)
class KeepLast:
    """A refinement that reads a statistic: keeps the last half of each row."""

    needs: ClassVar = (TokenSample,)

    def __call__(self, weight_OI, mask_OI, stats, pattern):
        assert len(stats[TokenSample].inputs_TI)
        half = mask_OI.shape[1] // 2
        last_OI = torch.zeros_like(mask_OI)
        last_OI[:, half:] = True
        return last_OI, {"half": half}


@dataclass(frozen=True)
class Double:
    """An update."""

    needs: ClassVar = ()

    def __call__(self, weight_OI, mask_OI, stats):
        return 2 * weight_OI * mask_OI


def test_compose_scores_masks_and_keeps(layer):
    weight_OI, _, stats = layer
    pruned = Compose(Wanda(), NM(2, 4))(weight_OI, stats, 0.5)
    scores = Wanda()(weight_OI, stats).double().flatten().tolist()
    kept = [x for x, stays in zip(scores, pruned.mask_OI.flatten().tolist(), strict=True) if stays]
    assert pruned.notes["score_kept"] == pytest.approx(sum(kept) / sum(scores))
    expected_OI = NM(2, 4).mask(Wanda()(weight_OI, stats), 0.5)
    assert torch.equal(pruned.mask_OI, expected_OI)
    assert torch.equal(pruned.weight_OI, torch.where(expected_OI, weight_OI, 0))
    assert pruned.order_I is None


def test_a_permuted_mask_has_its_pattern_in_the_permuted_order(layer):
    weight_OI, _, stats = layer
    ragged_OI = torch.cat([weight_OI, torch.zeros(24, 4)], 1)  # reversing shifts no 4-group ...
    weight_OI = ragged_OI[:, [0, 1, *range(4, 48), 2, 3]]
    pruned = InOrder(Compose(Magnitude(), NM(1, 4)), Magnitude(), Reverse())(weight_OI, stats, 0.75)
    assert pruned.order_I is not None
    permuted_OI = pruned.mask_OI[:, pruned.order_I]
    assert (permuted_OI.reshape(24, -1, 4).sum(2) == 1).all()
    assert torch.equal(pruned.weight_OI, torch.where(pruned.mask_OI, weight_OI, 0))


def test_refinement_and_update_follow_the_mask_and_their_needs_are_gathered(layer):
    weight_OI, _, stats = layer
    pruner = Compose(Wanda(), Unstructured("row"), refinement=KeepLast(), update=Double())
    assert pruner.needs == (ColumnNorm, TokenSample)
    pruned = pruner(weight_OI, stats, 0.5)
    assert not pruned.mask_OI[:, :24].any()
    assert torch.equal(pruned.weight_OI[:, 24:], 2 * weight_OI[:, 24:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kept_half_precision_weights_stay_bit_for_bit(dtype, layer):
    weight_OI, _, stats = layer
    weight_OI = weight_OI.to(dtype)
    pruned = Compose(Wanda(), Unstructured("layer"))(weight_OI, stats, 0.5)
    assert pruned.weight_OI.dtype == dtype
    assert torch.equal(pruned.weight_OI[pruned.mask_OI], weight_OI[pruned.mask_OI])


def run(family, pruner, sparsity=0.5):
    """Prune the first block of a tiny model; its block, dense weights and reports by role."""
    model, _ = load_tiny(family)
    ids_ST = torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(0))
    blocks, traced = inspect(model, ids_ST)
    dense = {layer.name: layer.weight_OI.clone() for layer in blocks[0].layers}
    plan = {layer.name: sparsity for layer in blocks[0].layers}
    recording = start(model, blocks, traced, ids_ST)
    down = next(layer for layer in blocks[0].layers if layer.role == "down")
    seen = []
    with torch.no_grad():
        handle = down.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for sample, call in enumerate(recording.calls[0]):
            call(blocks[0].module, recording.hidden[sample])
        handle.remove()
    activations_TI = torch.cat([x.flatten(0, -2) for x in seen])
    device = torch.device("cpu")
    reports = prune_blocks(blocks, recording, pruner, plan, device=device, observer=Silent())
    return blocks[0], dense, activations_TI, {report.role: report for report in reports}


@pytest.mark.parametrize("family", GATED)
@pytest.mark.parametrize("pattern", [None, NM(2, 4)])
def test_dass_masks_each_role_by_its_own_rule(family, pattern):
    block, dense, activations_TI, _ = run(family, DaSS.with_pattern(pattern))
    stats = gather(activations_TI, (ColumnNorm,))
    down_pattern = pattern or Unstructured("row")
    in_pattern = NM(2, 4, "output") if pattern else Unstructured("column")
    for layer in block.layers:
        weight_OI = dense[layer.name]
        if layer.role == "down":
            expected_OI = down_pattern.mask(Wanda()(weight_OI, stats), 0.5)
            assert torch.equal(layer.weight_OI != 0, expected_OI)
        elif layer.role in ("gate", "up", "gate_up"):
            for half_OI, new_OI in zip(
                weight_OI.chunk(len(layer.parts)),
                layer.weight_OI.chunk(len(layer.parts)),
                strict=True,
            ):
                expected_OI = in_pattern.mask(DaSSScore()(half_OI, stats), 0.5)
                assert torch.equal(new_OI != 0, expected_OI)


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 0.75])
def test_the_down_projections_power_is_its_own(power):
    """Table 12, literally: |w| · ‖X_j‖^α within each row; the other layers as ever."""
    pruner = build_method("dass", settings={"down.score.power": power})
    block, dense, activations_TI, _ = run("llama", pruner)
    plain = {layer.name: layer.weight_OI for layer in run("llama", DaSS())[0].layers}
    norms = [math.sqrt(sum(float(x) ** 2 for x in column)) for column in activations_TI.double().T]
    moved = 0
    for layer in block.layers:
        if layer.role != "down":
            assert torch.equal(layer.weight_OI, plain[layer.name])
            continue
        for row, new_I in zip(dense[layer.name].double().tolist(), layer.weight_OI, strict=True):
            scores = [abs(w) * norm**power for w, norm in zip(row, norms, strict=True)]
            kept = sorted(sorted(range(len(row)), key=scores.__getitem__)[len(row) // 2 :])
            assert new_I.nonzero().flatten().tolist() == kept
        moved += int(((layer.weight_OI != 0) != (plain[layer.name] != 0)).sum())
    assert moved


def test_dass_refuses_a_plain_mlp():
    with pytest.raises(UnsupportedModelError, match=r"fc1 has no gate beside it"):
        run("opt", DaSS())


def test_each_layer_uses_the_statistics_of_its_own_site():
    block, dense, activations_TI, _ = run("gpt2", EachLayer(Compose(Wanda(), Unstructured("row"))))
    down = next(layer for layer in block.layers if layer.role == "down")
    expected_OI = Unstructured("row").mask(
        Wanda()(dense[down.name], gather(activations_TI, (ColumnNorm,))), 0.5
    )
    assert torch.equal(down.weight_OI != 0, expected_OI)


@pytest.mark.parametrize("group", ["layer", "row"])
def test_mrp_masks_what_algorithm_1_does_block_by_block(group):
    """Before each block every weight takes its best value for the mask so far: a direct solve."""
    weight_OI, stats, matrix_II = problem()
    pruner = MRP(Unstructured(group), block_size=8, between=1e-10)
    mask_OI = torch.ones(12, 32, dtype=torch.bool)
    diagonal_I = torch.linalg.inv(matrix_II).diagonal()
    for lo in range(0, 32, 8):
        now_OI = optimum(weight_OI, mask_OI, matrix_II)
        score_OB = (now_OI.square() / (2 * diagonal_I))[:, lo : lo + 8]
        score_GN = score_OB.reshape(1, -1) if group == "layer" else score_OB
        keep_GN = torch.ones_like(score_GN, dtype=torch.bool)
        keep_GN.scatter_(1, score_GN.argsort(1)[:, : score_GN.shape[1] // 2], False)
        mask_OI[:, lo : lo + 8] = keep_GN.view(12, 8)
    assert torch.equal(pruner(weight_OI, stats, 0.5).mask_OI, mask_OI)
    assert not torch.equal(
        MRP(Unstructured(group), block_size=0)(weight_OI, stats, 0.5).mask_OI, mask_OI
    )


@pytest.mark.parametrize("sparsity", [0.3, 0.51, 0.99])
@pytest.mark.parametrize("block", [1, 3, 7])
def test_after_every_block_as_many_are_gone_as_the_share_of_all_so_far(sparsity, block):
    """Nothing is lost to the rounding of single blocks; per layer, per row, rows of their own."""
    each_O = torch.tensor([0.0, sparsity, 0.29, 1.0, 0.5])
    gone_layer, gone_row, gone_O = 0, 0, torch.zeros(5, dtype=torch.int64)
    for lo in range(0, 21, block):
        hi = lo + block
        of_layer = block_sparsity(Unstructured("layer"), sparsity, 5, lo, hi)
        of_row = block_sparsity(Unstructured("row"), sparsity, 5, lo, hi)
        gone_layer += removed(of_layer, 5 * block)
        gone_row += removed(of_row, block)
        gone_O += removed(block_sparsity(Unstructured("row"), each_O, 5, lo, hi), block)
        percent = round(100 * sparsity)
        assert gone_layer == percent * 5 * hi // 100
        assert gone_row == percent * hi // 100
        assert gone_O.tolist() == [p * hi // 100 for p in (0, percent, 29, 100, 50)]
