from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.base.errors import NumericalError, PatternError
from prunus.maths.patterns import NM, Unstructured, parse_pattern, removed

SPARSITIES = [0, 0.1, 0.5, 0.999, 1]


def literal_mask(score_GN: torch.Tensor, k: int) -> torch.Tensor:
    """Row by row: sort (score, position), drop the first k."""
    keep_GN = torch.ones_like(score_GN, dtype=torch.bool)
    for row, scores in enumerate(score_GN.tolist()):
        for _, position in sorted((s, j) for j, s in enumerate(scores))[:k]:
            keep_GN[row, position] = False
    return keep_GN


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("shape", [(24, 48), (1, 1000), (1000, 1), (7, 13), (1, 1)])
@pytest.mark.parametrize("group", ["layer", "row", "column"])
def test_unstructured_equals_the_literal_sort_and_counts_exactly(group, shape, sparsity):
    score_OI = torch.rand(shape, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    mask_OI = Unstructured(group).mask(score_OI, sparsity)
    groups = {"layer": lambda x: x.reshape(1, -1), "row": lambda x: x, "column": lambda x: x.T}
    score_GN, mask_GN = groups[group](score_OI), groups[group](mask_OI)
    k = int(Fraction(str(sparsity)) * score_GN.shape[1])
    assert ((~mask_GN).sum(1) == k).all()
    assert torch.equal(mask_GN, literal_mask(score_GN, k))


@pytest.mark.parametrize("along", ["input", "output"])
@pytest.mark.parametrize(
    ("keep", "of"), [(2, 4), (1, 4), (4, 8), (3, 8), (1, 2), (8, 16), (16, 32), (3, 3)]
)
def test_nm_equals_enumeration_and_counts_exactly(keep, of, along):
    score_OI = torch.rand(96, 96, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    pattern = NM(keep, of, along)
    mask_OI = pattern.mask(score_OI, pattern.sparsity)
    side = (lambda x: x) if along == "input" else (lambda x: x.T)
    score_GN, mask_GN = side(score_OI).reshape(-1, of), side(mask_OI).reshape(-1, of)
    assert (mask_GN.sum(1) == keep).all()
    assert torch.equal(mask_GN, literal_mask(score_GN, of - keep))
    if of <= 8:
        best = [max(sum(c) for c in combinations(row, keep)) for row in score_GN.tolist()]
        kept_G = (score_GN * mask_GN).sum(1)
        assert torch.allclose(kept_G, torch.tensor(best), atol=1e-6)


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3e38]), min_size=1, max_size=120),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_ties_go_in_order_of_position(scores, sparsity):
    score_OI = torch.tensor([scores])
    k = removed(sparsity, len(scores))
    assert torch.equal(Unstructured("row").mask(score_OI, sparsity), literal_mask(score_OI, k))


def test_all_equal_scores_lose_the_first_positions():
    assert Unstructured("layer").mask(torch.zeros(2, 50), 0.25).flatten().tolist() == (
        [False] * 25 + [True] * 75
    )
    assert NM(2, 4).mask(torch.zeros(1, 4), 0.5).tolist() == [[False, False, True, True]]


def test_the_count_is_that_of_the_decimal_typed():
    assert 0.29 * 100 < 29  # what floor() of the float product would make 28
    assert removed(0.29, 100) == 29
    assert [removed(s, 1000) for s in SPARSITIES] == [0, 100, 500, 999, 1000]


def test_columns_and_rows_are_the_same_thing_transposed():
    score_OI = torch.rand(10, 12)
    by_column = Unstructured("column").mask(score_OI, 0.3)
    assert torch.equal(by_column, Unstructured("row").mask(score_OI.T, 0.3).T)
    along_outputs = NM(1, 2, "output").mask(score_OI, 0.5)
    assert torch.equal(along_outputs, NM(1, 2).mask(score_OI.T, 0.5).T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_float_dtype(dtype):
    score_OI = torch.arange(96.0).reshape(2, 48).to(dtype)
    assert (~Unstructured("row").mask(score_OI, 0.5)).sum() == 48


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("pattern", [Unstructured("row"), NM(2, 4)])
def test_scores_must_be_finite(pattern, bad):
    score_OI = torch.ones(2, 8)
    score_OI[1, 3] = bad
    with pytest.raises(NumericalError, match="NaN or inf"):
        pattern.mask(score_OI, 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.5, float("nan")])
def test_sparsity_is_a_fraction(sparsity):
    with pytest.raises(PatternError, match="0 to 1"):
        Unstructured().mask(torch.ones(2, 2), sparsity)


def test_nm_needs_a_side_that_divides_and_its_own_sparsity():
    with pytest.raises(PatternError, match=r"divisible by 4; this layer has 11007"):
        NM(2, 4).check((5, 11007), 0.5)
    NM(2, 4, "output").check((8, 11007), 0.5)
    with pytest.raises(PatternError, match=r"always has sparsity 0\.5, but 0\.6"):
        NM(2, 4).check((8, 8), 0.6)
    with pytest.raises(PatternError, match="0 < N <= M"):
        NM(5, 4)


def test_patterns_as_the_command_line_spells_them():
    for pattern in (Unstructured("layer"), Unstructured("column"), NM(1, 4), NM(2, 4, "output")):
        assert parse_pattern(str(pattern)) == pattern
    with pytest.raises(PatternError, match="Unknown pattern '2-4'"):
        parse_pattern("2-4")
