"""What pruned models become: integers, cycles, speed, graphs of heads."""

from __future__ import annotations

import re

from .. import api
from ..judge.bench import bench
from ..judge.cycles import simulate
from ..report.unit_plots import alike, heads_graph
from .desk import Desk
from .entry import DENSE, Rows


def quantised(desk: Desk, *, bits: int = 4, group: int = 128) -> Rows:
    """Measure perplexity of each pruned model, and again on an integer grid (DaSS's table 8)."""
    before, after = desk.entry.header
    text = desk.entry.protocol.texts[0]
    rows: Rows = {DENSE: {before: desk.perplexity(desk.dense, text)}}
    for row, _, fields in desk.entry.cells():
        model = desk.prune(fields).model
        rows[row] = {before: desk.perplexity(model, text)}
        found = api.quantize(
            model, bits=bits, group=group, tokenizer=desk.tokenizer, **desk.fields({})
        )
        rows[row][after] = desk.perplexity(found.model, text)
        desk.say(f"{row}: {rows[row]}")
    return rows


def cycles(desk: Desk, *, as_published: bool = False) -> Rows:
    """Simulate each pruned model on ViTCoD: cycles of each kind of layer (BESA's table 4)."""
    rows: Rows = {}
    with desk.folder() as place:
        for row, _, fields in desk.entry.cells():
            folder = place / _slug(row)
            desk.prune(fields, folder)
            found = {x["layer"]: x for x in simulate(folder, as_published=as_published)}
            rows[DENSE] = {layer: x["dense"] for layer, x in found.items()}
            rows[row] = {layer: x["cycles"] for layer, x in found.items()}
            rows[f"{row}, sparsity %"] = {k: 100 * x["sparsity"] for k, x in found.items()}
            rows[f"{row}, speed-up"] = {layer: x["speedup"] for layer, x in found.items()}
            desk.say(f"{row}: simulated")
    return rows


def speed(desk: Desk, *, way: str = "pruned", new: int = 64, repeats: int = 5) -> Rows:
    """Time each pruned model against the dense one, in turns (``prunus bench``).

    Args:
        desk: of the run.
        way: to run it, as ``prunus bench --as`` has it.
        new: tokens to write.
        repeats: turns.
    """
    rows: Rows = {}
    with desk.folder() as place:
        for row, column, fields in desk.entry.cells():
            folder = place / _slug(f"{row} {column}")
            desk.prune(fields, folder)
            found = bench(folder, desk.model, ways=way, new=new, repeats=repeats, say=desk.say)
            timed = next(x for x in found.rows if x.way == way)
            before = f"{column}, " if len(desk.entry.columns) > 1 else ""
            numbers = {
                "tokens per second": timed.decode.value,
                "speed-up": timed.decode.ratio,
                "speed-up of prefill": timed.prefill.ratio,
            }
            rows.setdefault(row, {}).update({before + k: v for k, v in numbers.items()})
            rows.setdefault(DENSE, {})[before + "tokens per second"] = timed.decode.dense
    return rows


def heads(desk: Desk, *, threshold: float = 0.2) -> Rows:
    """Count which heads of each block attend alike (GOA's figure 3).

    A row for each block: pairs closer than the threshold, the largest group of heads that such
    pairs connect, and the smallest distance. With an output folder, the graph as a picture.

    Args:
        desk: of the run; the recipe of its first row says which distance.
        threshold: the distance below which two heads attend alike.
    """
    _, _, fields = next(desk.entry.cells())
    report = desk.prune(fields).report.structured
    assert report is not None
    rows: Rows = {}
    for block in report.blocks:
        if block.divergence is not None:
            pairs = alike(block.divergence, threshold)
            apart = [x for i, row in enumerate(block.divergence) for x in row[i + 1 :]]
            rows[f"block {block.block}"] = {
                "pairs below the threshold": len(pairs),
                "largest group": max(map(len, connected(len(block.divergence), pairs))),
                "closest pair": min(apart, default=None),
            }
    if desk.pictures() and (path := desk.writes("heads.png")):
        heads_graph(report, path, threshold)
    return rows


def connected(count: int, pairs: list[tuple[int, int]]) -> list[set[int]]:
    """Return the groups of heads that pairs connect; a head without a pair is a group of one.

    >>> connected(4, [(0, 2), (2, 3)])
    [{1}, {0, 2, 3}]
    """
    groups = [{head} for head in range(count)]
    for pair in pairs:
        touched = [group for group in groups if group & {*pair}]
        groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    return groups


def _slug(name: str) -> str:
    """Return a name for a folder."""
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()
