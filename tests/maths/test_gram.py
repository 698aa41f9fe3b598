"""The ridge as papers print it, against the printed matrix in float64."""

import dataclasses

import pytest
import torch

from helpers.problems import optimum, problem
from prunus.base.errors import InputError
from prunus.maths.gram import Gram
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import MRP, Compose, SparseGPT
from prunus.maths.refinements import Swaps
from prunus.maths.scores import OBS, Magnitude
from prunus.maths.updates import LeastSquares, SparseGPTSweep
from prunus.methods.build import build_method

GAMMA, TOKENS = 30.0, 200  # γ as large as a tenth of the diagonal of 2 XᵀX here


def printed(matrix_II):
    """``2 XᵀX + γI`` of the problem whose damped ``XᵀX / T`` this is."""
    # problem() adds a hundredth of the mean diagonal: the diagonal's mean is 1.01 of the Gram's.
    own = 0.01 * matrix_II.diagonal().mean() / 1.01
    identity_II = torch.eye(len(matrix_II)).double()
    return 2 * TOKENS * (matrix_II - own * identity_II) + GAMMA * identity_II


def test_an_absolute_ridge_is_the_printed_matrix_but_for_one_factor():
    _, stats, matrix_II = problem(tokens=TOKENS)
    system = stats[Gram].damped(GAMMA, "absolute")
    found_II = 2 * TOKENS * system.matrix_II.double()
    assert torch.allclose(found_II, printed(matrix_II), rtol=1e-5, atol=1e-4)
    inverse_II = torch.linalg.inv(printed(matrix_II))
    assert torch.allclose(system.inverse_II.double() / (2 * TOKENS), inverse_II, rtol=1e-3)
    assert stats[Gram].damped(GAMMA, "absolute") is system
    assert stats[Gram].damped(GAMMA) is not system


def test_an_absolute_ridge_that_is_too_small_is_raised_until_it_counts():
    """Fewer tokens than inputs, of any size: the literal γ of 0 leaves a singular matrix."""
    for size in (1e-3, 1.0, 1e3):
        inputs_TI = size * torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
        gram = Gram(64, torch.device("cpu"))
        gram.update(inputs_TI)
        gram.sum_II -= 1e-5 * gram.sum_II.diagonal().mean() * torch.eye(64)  # rounding, and worse
        system = gram.damped(0.0, "absolute")
        raised = system.damp / (2 * gram.tokens) / float(gram.matrix_II.diagonal().mean())
        assert raised == pytest.approx(1e-5, rel=1e-3) or raised == pytest.approx(1e-4, rel=1e-3)
        assert system.notes(0.0)["damp_raised_to"] == system.damp


@pytest.mark.parametrize("block_size", [0, 8])
def test_mrp_with_the_printed_ridge_is_the_printed_optimum(block_size):
    """Eq. 11, w_K = H_KK⁻¹ (H w⁰)_K; eq. 14, w² / (2 [H⁻¹]_jj); H = 2 XᵀX + γI."""
    weight_OI, stats, matrix_II = problem(tokens=TOKENS)
    pruner = MRP(
        Unstructured("row"), block_size=block_size, damp=GAMMA, ridge="absolute", tolerance=1e-12
    )
    pruned, printed_II = pruner(weight_OI, stats, 0.5), printed(matrix_II)
    expected_OI = optimum(weight_OI, pruned.mask_OI, printed_II)
    assert torch.allclose(pruned.weight_OI.double(), expected_OI, atol=1e-4)
    if not block_size:
        score_OI = weight_OI.double().square() / (2 * torch.linalg.inv(printed_II).diagonal())
        lowest_OI = score_OI.argsort(1)[:, :16]
        keep_OI = torch.ones_like(weight_OI, dtype=torch.bool).scatter_(1, lowest_OI, False)
        assert torch.equal(pruned.mask_OI, keep_OI)


PRUNERS = [
    SparseGPT(Unstructured("layer")),
    SparseGPT(NM(2, 4), refinement=Swaps()),
    *(MRP(NM(2, 4), mask, compensation) for mask in "SM" for compensation in "SM"),
    MRP(Unstructured("layer"), diagonal="trailing", refinement=Swaps()),
    Compose(OBS(), Unstructured("row"), update=LeastSquares()),
    Compose(Magnitude(), NM(2, 4), refinement=Swaps("dense"), update=SparseGPTSweep()),
]


def damped(part, **fields):
    """The part with another ridge, and so every part inside of it that has one."""
    inside = {
        f.name: damped(getattr(part, f.name), **fields)
        for f in dataclasses.fields(part)
        if dataclasses.is_dataclass(getattr(part, f.name))
    }
    own = fields if "ridge" in {f.name for f in dataclasses.fields(part)} else {}
    return dataclasses.replace(part, **inside, **own)


@pytest.mark.parametrize("pruner", PRUNERS, ids=repr)
def test_every_part_takes_the_absolute_ridge_for_what_it_is(pruner):
    """γ is the fraction γ / (2T · mean diagonal); two different ones give different weights."""
    weight_OI, stats, _ = problem(tokens=TOKENS)
    mean = float(stats[Gram].matrix_II.diagonal().mean())
    found = damped(pruner, damp=GAMMA, ridge="absolute")(weight_OI, stats, 0.5)
    fraction = GAMMA / (2 * TOKENS * mean)
    expected = damped(pruner, damp=fraction, ridge="relative")(weight_OI, stats, 0.5)
    assert torch.equal(found.mask_OI, expected.mask_OI)
    assert torch.allclose(found.weight_OI, expected.weight_OI, atol=1e-5)
    default = pruner(weight_OI, stats, 0.5)
    assert not torch.allclose(found.weight_OI, default.weight_OI, atol=1e-3)


@pytest.mark.parametrize(
    "make", [OBS, SparseGPTSweep, LeastSquares, Swaps, SparseGPT, MRP], ids=lambda x: x.__name__
)
def test_a_ridge_is_one_of_two_words(make):
    with pytest.raises(InputError, match="relative or absolute, not 'literal'"):
        make(ridge="literal")


def test_it_is_set_from_the_command_line():
    settings = {"ridge": "absolute", "refinement.ridge": "absolute"}
    pruner = build_method("mrp-sm", refine="swaps", settings=settings).pruner
    assert (pruner.ridge, pruner.refinement.ridge) == ("absolute", "absolute")
    update = {"update.ridge": "absolute"}
    assert build_method("ria", update="least-squares", settings=update).pruner.update.ridge
