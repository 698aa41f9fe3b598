"""Fewer cases than a whole product of axes."""

from itertools import cycle, islice


def each(*axes):
    """Every value of every axis at least once: the shorter axes go round beside the longest."""
    count = max(map(len, axes))
    return list(zip(*(islice(cycle(axis), count) for axis in axes), strict=True))
