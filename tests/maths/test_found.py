"""Every pattern is found as what it is, and zeros at random places as none."""

import pytest
import torch

from prunus.maths.found import LENGTHS, found_pattern, has_pattern
from prunus.maths.patterns import NM, Unstructured, parse_pattern


def scores(rows=48, columns=64, seed=0):
    """Scores of which some rows and some columns are much higher than others."""
    score = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    score[:7] *= 3
    score[:, :5] *= 3
    return score


@pytest.mark.parametrize("pattern", ["row", "layer", "column", "1:4", "4:8", "2:4:output"])
def test_each_pattern_is_found_as_what_it_is(pattern):
    score, made = scores(), parse_pattern(pattern)
    mask = made.mask(score, made.sparsity if isinstance(made, NM) else 0.5)
    assert found_pattern(score * mask) == pattern


@pytest.mark.parametrize("along", ["input", "output"])
@pytest.mark.parametrize("of", LENGTHS)
def test_every_n_of_every_m_is_found_with_its_smallest_m(of, along):
    score = scores(3 * of, 5 * of * 64 // of) if along == "output" else scores(64, 5 * of)
    for keep in range(1, of):
        made = NM(keep, of, along)
        weight = score * made.mask(score, made.sparsity)
        found = parse_pattern(found_pattern(weight))
        assert found.along == along
        assert found.keep * of == keep * found.of  # 2:4 for 2:4, and 1:2 where it is that too
        assert has_pattern(found, weight)
        assert found.of <= of


def test_further_zeros_and_rows_without_weights_do_not_hide_a_pattern():
    score = scores(96, 128)
    weight = score * NM(2, 4).mask(score, 0.5)
    weight[torch.rand(96, 128, generator=torch.Generator().manual_seed(1)) < 0.05] = 0
    weight[::3] = 0
    assert found_pattern(weight) == "2:4"
    assert found_pattern(weight.T.contiguous()) == "2:4:output"


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.97])
def test_zeros_at_random_places_are_no_pattern(share):
    for seed in range(5):
        drawn = torch.rand(96, 480, generator=torch.Generator().manual_seed(seed))
        assert found_pattern((drawn >= share).float()) == "layer"
        by_row = Unstructured("row").mask(drawn, share)
        assert found_pattern(by_row.float()) == "row"


def test_columns_without_weights_and_a_few_zeros_more_are_no_n_of_m():
    drawn = torch.rand(96, 480, generator=torch.Generator().manual_seed(0))
    weight = (drawn >= 0.05).float()
    weight[:, torch.randperm(480, generator=torch.Generator().manual_seed(1))[:240]] = 0
    assert found_pattern(weight) == "layer"


def test_what_is_zero_throughout_is_said_so():
    weight = torch.ones(40, 64)
    weight[[3, 5, 20]] = 0
    assert found_pattern(weight) == "whole rows"
    assert found_pattern(weight.T) == "whole columns"
    weight[:, ::2] = 0
    assert found_pattern(weight) == "whole rows and columns"


def test_what_is_no_pattern_is_dense_or_all_zeros():
    assert found_pattern(torch.ones(8, 8)) == "dense"
    assert found_pattern(torch.zeros(8, 8)) == "zero"
    one = torch.ones(8, 16)
    one[3, 3] = 0  # 1 of 128 is less than 1 %
    assert found_pattern(one) == "dense"
