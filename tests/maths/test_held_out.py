"""Which samples judge, and that they know nothing of what the others teach."""

from itertools import product

import pytest
import torch

from prunus.maths.held_out import RUN, groups_of, held_out, last_quarter
from prunus.maths.reconstruction import Reconstruction


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def runs(ids_T):
    return {tuple(ids_T[i : i + RUN].tolist()) for i in range(len(ids_T) - RUN + 1)}


def drawn(rng, count, tokens, length=64):
    """Windows of one text, and where each begins."""
    text = torch.randint(50_000, (tokens,), generator=rng)
    starts = torch.randint(tokens - length, (count,), generator=rng).tolist()
    return [text[i : i + length] for i in starts], starts


@pytest.mark.parametrize("tokens", [1_500, 3_000, 10_000])
def test_windows_that_overlap_are_one_group(rng, tokens):
    """By the places that they were cut from, joined one by one."""
    windows, starts = drawn(rng, 24, tokens)
    expected = list(range(24))
    for i, j in product(range(24), repeat=2):
        if abs(starts[i] - starts[j]) <= 64 - RUN:
            a, b = expected[i], expected[j]
            expected = [a if x == b else x for x in expected]
    found = groups_of(windows)
    assert len(set(found)) < 24
    assert [[x == y for y in found] for x in found] == [
        [x == y for y in expected] for x in expected
    ]


@pytest.mark.parametrize("shared", [RUN - 1, RUN])
def test_a_run_of_32_tokens_is_text_in_common(rng, shared):
    one, other = (torch.randint(50_000, (100,), generator=rng) for _ in range(2))
    other[7 : 7 + shared] = one[60 : 60 + shared]
    assert groups_of([one, other]) == ((0, 0) if shared == RUN else (0, 1))


def test_what_most_samples_begin_with_makes_no_group(rng):
    """A system prompt. That of a few does: they may be one conversation, cut in two."""
    prompt = torch.randint(50_000, (40,), generator=rng)
    bodies = torch.randint(50_000, (16, 60), generator=rng)
    for few in (2, 4, 5, 16):
        samples = [torch.cat([prompt, x]) if i < few else x for i, x in enumerate(bodies)]
        expected = tuple(range(16)) if few > 4 else (*[0] * few, *range(1, 17 - few))
        assert groups_of(samples) == expected


def test_placeholders_and_short_samples_make_no_group(rng):
    image = torch.tensor([7, 7, 7, 9]).repeat(20)
    with_image = [torch.cat([image, torch.randint(99, (9,), generator=rng)]) for _ in range(3)]
    short = torch.arange(RUN - 1)
    assert groups_of([*with_image, short, short]) == (0, 1, 2, 3, 4)


def choices(samples):
    """All ways to judge: as recovery and searches do, and as reconstruction."""
    return [
        lambda groups: last_quarter(samples, groups),
        *(
            lambda groups, share=share: Reconstruction(held_out=share).judges(samples, groups)
            for share in (0.1, 0.25, 0.5)
        ),
    ]


@pytest.mark.parametrize("samples", [2, 5, 16, 64])
def test_judges_have_no_text_in_common_with_teachers(rng, samples):
    for sizes in (1.0, 0.7, 0.4):
        groups = torch.randint(max(int(sizes * samples), 2), (samples,), generator=rng).tolist()
        least = min(groups.count(group) for group in groups)
        for chosen in choices(samples):
            found, most = chosen(groups), len(chosen(()))
            assert found == sorted(set(found))
            assert 0 < len(found) < samples
            if 2 * least > samples:  # one group: what would be chosen without
                assert found == chosen(())
                continue
            assert len(found) <= max(most, least)
            taught = {group for i, group in enumerate(groups) if i not in found}
            assert not taught & {groups[i] for i in found}


def test_where_nothing_is_in_common_the_choice_is_that_without_groups():
    for samples in (2, 3, 4, 16, 128):
        for chosen in choices(samples):
            assert chosen(tuple(range(samples))) == chosen(())
        assert last_quarter(samples) == list(range(samples - max(samples // 4, 1), samples))


def test_judges_stay_where_they_are_if_only_teachers_overlap():
    groups = (*range(9), 8, *range(9, 15))
    assert last_quarter(16, groups) == [12, 13, 14, 15]
    assert Reconstruction().judges(16, groups) == [3, 7, 11, 15]


def test_one_text_that_hangs_together_leaves_no_better_choice():
    assert held_out((0, 0, 0, 0), 2, [3, 2, 1, 0]) == [2, 3]
    assert last_quarter(1) == [0]
