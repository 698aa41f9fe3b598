"""Several sources as one text: their names, shares, counts and order."""

from fractions import Fraction

import pytest

from prunus.base.errors import InputError
from prunus.text.mixture import Part, counts_of, order_of, parts_of


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("c4", [("c4", 1)]),
        ("c4:0.5,self:0.5", [("c4", 0.5), ("self", 0.5)]),
        ("c4:3,my prompts.jsonl:.25", [("c4", 3), ("my prompts.jsonl", 0.25)]),
        ("a,b.jsonl:1,c:d.txt:2", [("a,b.jsonl", 1), ("c:d.txt", 2)]),
        ("c4:1", [("c4", 1)]),
        ("prompts.jsonl", [("prompts.jsonl", 1)]),
        ("no,shares.jsonl", [("no,shares.jsonl", 1)]),
        ("c4:0.5,rest", [("c4:0.5,rest", 1)]),
    ],
)
def test_a_source_is_several_where_each_has_a_share(source, parts):
    assert parts_of(source) == [Part(*part) for part in parts]


def test_a_path_that_exists_is_one_source_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c4:0.5,x.jsonl:0.5", "x:1"):
        (tmp_path / name).touch()
        assert parts_of(name) == [Part(name)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("c4,ptb", "Give each its share of the windows, such as c4:0.5,ptb:0.5"),
        ("c4:0.5,ptb", "names several sources"),
        ("c4:0,ptb:1", "the share of c4 is 0"),
        ("c4:1,none:1", "none alone"),
        ("c4:1,c4:1", "every source once"),
    ],
)
def test_what_is_no_mixture_says_so(source, message):
    with pytest.raises(InputError, match=message):
        parts_of(source)


@pytest.mark.parametrize("shares", [(1, 1), (1, 2, 3), (0.5, 0.3, 0.2), (98, 1, 1)])
@pytest.mark.parametrize("samples", [3, 7, 16, 100])
def test_counts_are_the_largest_remainders(shares, samples):
    counts = counts_of([Part(str(i), share) for i, share in enumerate(shares)], samples)
    assert sum(counts) == samples
    exact = [Fraction(s) * samples / sum(map(Fraction, shares)) for s in shares]
    floors = [int(x) for x in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (floors[i] - exact[i], i))
    for i in by_remainder[: samples - sum(floors)]:
        floors[i] += 1
    if 0 not in floors:
        assert counts == floors
    assert min(counts) >= 1


def test_every_source_needs_a_window():
    with pytest.raises(InputError, match="2 calibration sources need a window each"):
        counts_of([Part("a"), Part("b")], 1)


def test_samples_are_dealt_evenly():
    order = order_of([6, 2])
    assert sorted(order) == [(0, k) for k in range(6)] + [(1, 0), (1, 1)]
    assert [sum(i for i, _ in order[:half]) for half in (4, 8)] == [1, 2]
    assert [k for i, k in order if i == 0] == list(range(6))
