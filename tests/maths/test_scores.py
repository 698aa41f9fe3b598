"""Every score against a literal float64 loop of its paper's formula."""

import math

import pytest
import torch

from prunus.base.errors import InputError
from prunus.maths.scores import OBS, RIA, DaSS, Magnitude, RelativeImportance, Wanda
from prunus.maths.stats import ColumnNorm, gather


def loop(weight_OI, inputs_TI, formula):
    """formula(|w|, sum of the column, sum of the row, the input), in python floats."""
    w = weight_OI.double().abs().tolist()
    rows, columns = len(w), len(w[0])
    column_sum = [sum(w[o][i] for o in range(rows)) for i in range(columns)]
    row_sum = [sum(w[o]) for o in range(rows)]
    inputs = inputs_TI.double().T.tolist()
    return torch.tensor(
        [
            [formula(w[o][i], column_sum[i], row_sum[o], inputs[i]) for i in range(columns)]
            for o in range(rows)
        ],
        dtype=torch.float64,
    )


def rms(x):
    return math.sqrt(sum(value**2 for value in x) / len(x))


def share(part, whole):
    return part / whole if whole else 0.0


FORMULAS = [
    (Magnitude(), lambda w, c, r, x: w),
    (RelativeImportance(), lambda w, c, r, x: share(w, c) + share(w, r)),
    (RelativeImportance("in"), lambda w, c, r, x: share(w, c)),
    (RelativeImportance("out"), lambda w, c, r, x: share(w, r)),
    (Wanda(), lambda w, c, r, x: w * rms(x)),
    (Wanda(power=0.75), lambda w, c, r, x: w * rms(x) ** 0.75),
    (Wanda(power=0.0), lambda w, c, r, x: w),
    (RIA(), lambda w, c, r, x: (share(w, c) + share(w, r)) * rms(x) ** 0.5),
    (RIA(power=1.0), lambda w, c, r, x: (share(w, c) + share(w, r)) * rms(x)),
    (RIA(power=0.0), lambda w, c, r, x: share(w, c) + share(w, r)),
    (RIA(terms="in"), lambda w, c, r, x: share(w, c) * rms(x) ** 0.5),
    (RIA(terms="out"), lambda w, c, r, x: share(w, r) * rms(x) ** 0.5),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("score", "formula"),
    FORMULAS,
    ids=lambda x: "" if callable(x) and not hasattr(x, "needs") else repr(x),
)
def test_score_equals_the_formula(score, formula, dtype, layer):
    weight_OI, inputs_TI, _ = layer
    weight_OI = weight_OI.to(dtype)
    weight_OI[5], weight_OI[:, 7] = 0, 0  # a dead output and a dead input: 0/0 in RI
    before = weight_OI.clone()
    got_OI = score(weight_OI, gather(inputs_TI, score.needs))
    assert got_OI.dtype == torch.float32
    expected_OI = loop(weight_OI, inputs_TI, formula)
    assert torch.allclose(got_OI.double(), expected_OI, rtol=1e-5, atol=1e-12)
    assert torch.equal(weight_OI, before)


@pytest.mark.parametrize("power", [0.5, 0.25, 1.0, 0.0])
def test_dass_equals_the_formula(power, layer):
    weight_OI = layer[0]
    activation_TO = torch.randn(99, 24, generator=torch.Generator().manual_seed(4))
    activation_TO[:, 3] *= 50
    got_OI = DaSS(power)(weight_OI, gather(activation_TO, DaSS.needs))
    for o in range(24):
        norm = math.sqrt(sum(float(y) ** 2 for y in activation_TO[:, o].double()) / 99)
        expected_I = weight_OI[o].double().abs() * norm**power
        assert torch.allclose(got_OI[o].double(), expected_I, rtol=1e-5)


def test_dass_refuses_statistics_of_the_wrong_tensor(layer):
    weight_OI, _, stats = layer
    with pytest.raises(InputError, match="24 outputs, the statistics 48"):
        DaSS()(weight_OI, stats)


def test_the_norm_is_the_papers_up_to_one_factor(layer):
    """‖X_i‖₂ = rms · √T, so Wanda's masks are those of the paper's norm."""
    _, inputs_TI, stats = layer
    ratio_I = inputs_TI.norm(dim=0) / stats[ColumnNorm].rms_I
    alive_I = stats[ColumnNorm].rms_I > 0
    assert torch.allclose(ratio_I[alive_I], torch.tensor(160.0).sqrt(), rtol=1e-5)


def test_ria_has_its_two_ablations_and_no_third():
    with pytest.raises(InputError, match="both, in or out"):
        RIA(terms="rows")
    with pytest.raises(InputError, match="both, in or out"):
        RelativeImportance("rows")


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_obs_divides_by_the_inverse_of_what_is_not_yet_done(power):
    """SparseGPT's diagonal, by inverting each trailing part of H = G + 0.01 · mean · I itself.

    A power of ½ is what BESA's code divides by: an element of U, where H⁻¹ = UᵀU.
    """
    generator = torch.Generator().manual_seed(3)
    weight_OI = torch.randn(5, 9, generator=generator)
    inputs_TI = torch.randn(60, 9, generator=generator) @ torch.randn(9, 9, generator=generator)
    gram_II = inputs_TI.double().T @ inputs_TI.double() / 60
    hessian_II = gram_II + 0.01 * gram_II.diagonal().mean() * torch.eye(9)
    expected_OI = torch.zeros(5, 9).double()
    for column in range(9):
        element = float(hessian_II[column:, column:].inverse()[0, 0])
        for row in range(5):
            expected_OI[row, column] = float(weight_OI[row, column]) ** 2 / (2 * element**power)
    stats = gather(inputs_TI, OBS.needs)
    found_OI = OBS("trailing", power=power)(weight_OI, stats).double()
    torch.testing.assert_close(found_OI, expected_OI, rtol=1e-4, atol=0)
