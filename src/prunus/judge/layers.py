"""Check the zeros of pruned layers: counts, patterns, grids, and the report about them."""

from __future__ import annotations

from itertools import chain

from torch import Tensor

from ..base.errors import CheckpointError
from ..base.words import number_of
from ..maths.contracts import Pattern
from ..maths.grids import Grid
from ..maths.orders.orders import FILE as ORDERS
from ..maths.orders.orders import Orders
from ..maths.patterns import NM, Unstructured, parse_pattern, removed
from ..report.layer import LayerReport
from ..report.report import PruningReport
from ..storage.pruned import read_layers
from .verification import Subject, Verification


def check(subject: Subject, found: Verification) -> None:
    """Check every layer of the report: its shape, its zeros, its pattern, its grid.

    Raises:
        CheckpointError: an order of the inputs is claimed and not there.
    """
    report = subject.report
    assert report is not None
    found.problems += _unproven(report, subject)
    packed = report.grid if report.packed else None
    tensors = read_layers(subject.folder, report, subject.trust_remote_code, packed)
    zeros = weights = 0
    missing = {layer.name: layer.parameter for layer in report.layers}
    for name, tensor, layers in tensors:
        found.check_finite(name, tensor)
        for layer, weight_OI in layers:
            missing.pop(layer.name)
            count = int((weight_OI == 0).sum())
            zeros, weights = zeros + count, weights + weight_OI.numel()
            _check_layer(layer, weight_OI, count, subject, found)
            if report.grid is not None and not layer.notes.get("scale_exponent"):
                found.problems += _grid_problems(name, weight_OI, report.grid)
    names = dict.fromkeys(missing.values())
    found.problems += [f"{name} is in the report but not in the checkpoint." for name in names]
    found.sparsity = zeros / weights if weights else 0.0
    if weights != report.coverage.pruned_weights:
        found.problems.append(
            f"The report says that {report.coverage.pruned_weights} weights were covered; its "
            f"layers have {weights}."
        )
    if abs(found.sparsity - report.sparsity) > 0.5 / max(weights, 1):
        found.problems.append(
            f"The report says that {report.sparsity:.6f} of all weights are zero; it is "
            f"{found.sparsity:.6f}."
        )
    found.checks += ["finite weights", "zeros per comparison group", "report against tensors"]
    if report.grid is not None:
        found.checks.append(f"no more than {2**report.grid.bits} values in a group")


def _check_layer(
    layer: LayerReport,
    weight_OI: Tensor,
    zeros: int,
    subject: Subject,
    found: Verification,
) -> None:
    name = layer.parameter if layer.expert is None else layer.name
    found.problems += _layer_problems(name, weight_OI, zeros, layer)
    if tuple(weight_OI.shape) != layer.shape:
        return
    claimed, demanded = parse_pattern(layer.pattern), subject.demanded
    order_I, shown = _order(layer, claimed, subject.orders)
    if demanded is None:
        found.count(shown)
        if order_I is not None:
            found.problems += _pattern_problems(name, weight_OI[:, order_I], claimed, layer)
        elif shown == str(claimed):
            found.problems += _pattern_problems(name, weight_OI, claimed, layer)
        return
    problems = _pattern_problems(name, weight_OI, demanded, layer)
    if problems and order_I is not None:
        ordered_OI = weight_OI[:, order_I]
        if not _pattern_problems(name, ordered_OI, claimed, layer):
            problems = [
                f"{name} has {shown}, but not in the stored order, which is the one that hardware "
                "reads."
            ]
    found.count(shown if problems and order_I is not None else str(demanded))
    found.problems += problems


def _order(layer: LayerReport, claimed: Pattern, orders: Orders) -> tuple[Tensor | None, str]:
    """Return the order of the inputs in which the pattern is said to hold, and how to call it.

    None: as stored; or an order of the layer's own that is stored nowhere (see ``_unproven``).
    """
    order = layer.notes.get("order")
    if order == "gather":
        order_I = orders.gathered.get(str(layer.notes.get("site")))
        if order_I is None or len(order_I) != layer.shape[1]:
            raise CheckpointError(
                f"The report says that {layer.name} reads its inputs through an index, and "
                f"{ORDERS} has none that fits. The checkpoint is damaged."
            )
        return order_I, f"{claimed} behind an index"
    if order == "free":
        order_I = free_order(layer, orders)
        proven = "" if order_I is not None else " that is not stored"
        return order_I, f"{claimed} in a free order{proven}"
    return None, str(claimed)


def free_order(layer: LayerReport, orders: Orders) -> Tensor | None:
    """Return the order of a layer's own, if one that fits is stored."""
    order_I = orders.free.get(layer.name)
    return None if order_I is None or len(order_I) != layer.shape[1] else order_I


def _unproven(report: PruningReport, subject: Subject) -> list[str]:
    """Return a problem if a pattern is claimed in orders of which none is stored."""
    names = [
        layer.name
        for layer in report.layers
        if layer.notes.get("order") == "free" and free_order(layer, subject.orders) is None
    ]
    if subject.demanded is not None or not names:
        return []
    return [
        f"No claim can be checked about the pattern of {number_of(len(names), 'layer')}, such as "
        f"{names[0]}: it is said to hold in an order of each layer's own, and {ORDERS} has none "
        "that fits. (Earlier versions of prunus did not write these orders.) Prune again to have "
        "them."
    ]


def _layer_problems(name: str, weight_OI: Tensor, zeros: int, layer: LayerReport) -> list[str]:
    if tuple(weight_OI.shape) != layer.shape:
        return [f"{name} is {tuple(weight_OI.shape)}, not {layer.shape}."]
    if zeros != round(layer.sparsity * weight_OI.numel()):
        said = f"{layer.sparsity:.6f} of {weight_OI.numel()}"
        return [f"{name} has {zeros} zeros; the report says {said}."]
    return []


def _pattern_problems(
    name: str, weight_OI: Tensor, pattern: Pattern, layer: LayerReport
) -> list[str]:
    apart = layer.notes.get("pruned_apart") or [[None, None, None]]
    covered = chain(*(range(*slice(*rows).indices(len(weight_OI))) for rows in apart))
    if sorted(covered) != list(range(len(weight_OI))):
        return [f"{name}: the parts that the report says it was pruned in are not the whole of it."]
    problems = []
    for rows in apart:
        part_OI = weight_OI[slice(*rows)]
        if isinstance(pattern, NM):
            side = part_OI.shape[1] if pattern.along == "input" else part_OI.shape[0]
            if side % pattern.of:
                problems.append(f"{name} cannot be {pattern}: {side} {pattern.along}s.")
                continue
            need = pattern.of - pattern.keep
            zeros_G = (pattern.groups(part_OI) == 0).sum(1)
        else:
            assert isinstance(pattern, Unstructured)  # the two patterns that parse_pattern knows
            groups_GN = pattern.groups(part_OI)
            need = removed(layer.requested, groups_GN.shape[1])
            zeros_G = (groups_GN == 0).sum(1)
        short = int((zeros_G < need).sum())
        if short:
            problems.append(
                f"{name} is not {pattern}: {short} of {len(zeros_G)} groups have fewer than "
                f"{need} zeros."
            )
    return problems


def _grid_problems(name: str, weight_OI: Tensor, grid: Grid) -> list[str]:
    """Check that no group of stored inputs has more values than the grid has points."""
    most = max(
        int((group_ON.sort(1).values.diff(dim=1) != 0).sum(1).max()) + 1
        for group_ON in weight_OI.split(grid.group or weight_OI.shape[1], 1)
    )
    if most > 2**grid.bits:
        return [f"{name} is on no grid of {grid}: a group has {most} values."]
    return []
