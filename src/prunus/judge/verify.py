"""Proof that a written checkpoint is what it claims, from the files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..base.arguments import typed
from ..base.errors import CheckpointError, PatternError
from ..base.memory import available_memory
from ..maths.contracts import Pattern
from ..maths.grids import Grid
from ..maths.orders.orders import Orders
from ..maths.patterns import NM, OneOf, Unstructured, parse_pattern, removed
from ..report.layer import LayerReport
from ..report.report import FILE as REPORT
from ..report.report import PruningReport, read_report
from ..storage.checkpoint import load_weights
from ..storage.kinds import auto_name
from ..storage.origin import origin_of
from ..storage.packing import grid_of
from ..storage.pruned import Stored, read_layers
from ..storage.scratch import Scratch
from ..storage.shards import check_shards
from ..storage.widths import read_widths
from . import smaller as structured
from . import unreported
from .comparison import Changes, compare, compare_models
from .fresh_process import asked

# Run in a new interpreter that never imports prunus: what any user of the checkpoint will do.
RELOAD = """
import json, sys, torch, transformers
from transformers import logging
logging.set_verbosity_error()
logging.disable_progress_bar()
where = {"": "disk", "nothing": "cpu"}  # transformers 5.0 ignores a map to the disk alone
from_disk = {"device_map": where, "offload_folder": sys.argv[3]} if sys.argv[3] else {}
model, loading = getattr(transformers, sys.argv[4]).from_pretrained(
    sys.argv[1], output_loading_info=True, local_files_only=True,
    trust_remote_code=sys.argv[2] == "True", **from_disk)
ids = torch.arange(8)[None] % model.get_input_embeddings().weight.shape[0]
with torch.no_grad():
    logits = model.eval()(input_ids=ids).logits
print(json.dumps({"finite": bool(logits.isfinite().all()),
                  "missing": sorted(loading["missing_keys"]),
                  "unexpected": sorted(loading["unexpected_keys"]),
                  "prunus": "prunus" in sys.modules}))
"""


@dataclass
class Verification:
    """What was found.

    Attributes:
        problems: one sentence each; empty means that all holds.
        sparsity: zeros over weights in the pruned layers, counted in the files.
        patterns: the patterns that were checked, and how many layers have each.
        checks: what was looked at.
        in_files: whether something is wrong in the files themselves, not only with the reload.
    """

    problems: list[str] = field(default_factory=list)
    sparsity: float = 0.0
    patterns: dict[str, int] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    in_files: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def pattern(self) -> str:
        """The patterns in one word or several."""
        return ", ".join(self.patterns)


@typed
def verify(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    pattern: str | None = None,
    reload: bool = True,
    trust_remote_code: bool = False,
) -> Verification:
    """Check the files of a pruned checkpoint.

    Laws 2 and 3 (counts per comparison group, N:M in the stored order), finite weights, the report
    against the tensors, no format claim that loaders would act on; with ``source`` that every
    tensor that was not to be pruned is unchanged; and a reload by plain transformers in a fresh
    process, with finite logits.

    Args:
        folder: what ``prunus prune --output`` wrote.
        source: the checkpoint that it was made from.
        pattern: demand this one of every pruned layer, instead of what the report claims.
        reload: start the fresh process.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        CheckpointError: not a checkpoint, or damaged beyond looking into it.
    """
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist. Give the folder of a checkpoint.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no checkpoint: it has no config.json.")
    found = Verification()
    check_shards(folder)
    if not (folder / REPORT).exists():
        unreported.check(folder, source, _one(pattern), trust_remote_code, found)
        if reload:
            _check_reload(folder, None, found, trust_remote_code, False)
        return found
    report = read_report(folder)
    if report.structured is not None:
        structured.check(folder, check_shards(folder), report, pattern, found)
        if source is not None:
            _check_against(folder, source, report, Orders(), found, trust_remote_code)
        if reload:
            _check_reload(folder, report, found, trust_remote_code, False)
        return found
    packed = _check_config(folder, report, found)
    orders = Orders.read(folder)
    demanded = _one(pattern)
    stored = read_layers(folder, report, trust_remote_code, packed)
    _check_layers(report, stored, orders, demanded, found)
    if source is not None:
        _check_against(folder, source, report, orders, found, trust_remote_code)
    if reload:
        _check_reload(folder, report, found, trust_remote_code, packed is not None)
    return found


def _one(pattern: str | None) -> Pattern | None:
    """The pattern that is demanded of all layers, if one is."""
    demanded = parse_pattern(pattern) if pattern else None
    if isinstance(demanded, OneOf):
        raise PatternError(
            f"--pattern {pattern} leaves a choice, and verify demands one pattern of all layers. "
            "Leave it out to check what the report claims, or to find what is there."
        )
    return demanded


def _check_config(folder: Path, report: PruningReport, found: Verification) -> Grid | None:
    """The grid of a packed checkpoint, which must be the report's."""
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(f"{folder / 'config.json'} is damaged: no JSON object.") from None
    inner = config.get("quantization_config")
    if "sparsity_config" in config or (isinstance(inner, dict) and inner.get("sparsity_config")):
        found.problems.append("config.json has a sparsity_config, which loaders would act on.")
    if not report.packed:
        if "quantization_config" in config:
            found.problems.append(
                "config.json has a quantization_config, which loaders would act on."
            )
        found.checks.append("config.json makes no claim about the weights' format")
        return None
    grid = grid_of(config)
    if grid is None or grid != report.grid:
        raise CheckpointError(f"The report says {report.grid}, packed; config.json says {grid}.")
    found.checks.append(f"config.json says what the integers are: {grid}")
    return grid


def _check_layers(
    report: PruningReport,
    tensors: Iterable[Stored],
    orders: Orders,
    demanded: Pattern | None,
    found: Verification,
) -> None:
    zeros = weights = 0
    missing = {layer.name: layer.parameter for layer in report.layers}
    for name, tensor, layers in tensors:
        if not bool(tensor.isfinite().all()):
            found.problems.append(f"{name} holds NaN or inf.")
        for layer, weight_OI in layers:
            missing.pop(layer.name)
            count = int((weight_OI == 0).sum())
            zeros, weights = zeros + count, weights + weight_OI.numel()
            _check_layer(layer, weight_OI, count, orders, demanded, found)
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
            f"The report says {report.sparsity:.6f} of all is zero; it is {found.sparsity:.6f}."
        )
    found.checks += ["finite weights", "zeros per comparison group", "report against tensors"]
    if report.grid is not None:
        found.checks.append(f"no more than {2**report.grid.bits} values in a group")


def _check_layer(
    layer: LayerReport,
    weight_OI: Tensor,
    zeros: int,
    orders: Orders,
    demanded: Pattern | None,
    found: Verification,
) -> None:
    name = layer.parameter if layer.expert is None else layer.name
    found.problems += _layer_problems(name, weight_OI, zeros, layer)
    if tuple(weight_OI.shape) != layer.shape:
        return
    weight_OI, pattern, shown = _as_ordered(weight_OI, layer, orders, demanded)
    if demanded is not None and str(demanded) != shown:
        found.problems.append(
            f"{name} has {shown}; in the stored order, which hardware reads, it has not."
        )
    found.patterns[shown] = found.patterns.get(shown, 0) + 1
    found.problems += _pattern_problems(name, weight_OI, pattern, layer)


def _as_ordered(
    weight_OI: Tensor, layer: LayerReport, orders: Orders, demanded: Pattern | None
) -> tuple[Tensor, Pattern, str]:
    """The weight in the order in which its pattern is claimed, what to check, and how it is called.

    A free order is not written down: what is left to check is the count of each row.
    """
    pattern = demanded or parse_pattern(layer.pattern)
    order = layer.notes.get("order")
    if isinstance(demanded, Unstructured) or order not in ("free", "gather"):
        return weight_OI, pattern, str(pattern)
    if order == "free":
        return weight_OI, Unstructured("row"), f"{layer.pattern} in a free order"
    order_I = orders.gathered.get(str(layer.notes.get("site")))
    if order_I is None or len(order_I) != weight_OI.shape[1]:
        raise CheckpointError(
            f"The report says that {layer.name} reads its inputs through an index, and "
            "channel_orders.json has none that fits. The checkpoint is damaged."
        )
    claimed = parse_pattern(layer.pattern)
    return weight_OI[:, order_I], claimed, f"{claimed} behind an index"


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
    """No group of stored inputs may have more values than the grid has points."""
    most = max(
        int((group_ON.sort(1).values.diff(dim=1) != 0).sum(1).max()) + 1
        for group_ON in weight_OI.split(grid.group or weight_OI.shape[1], 1)
    )
    if most > 2**grid.bits:
        return [f"{name} is on no grid of {grid}: a group has {most} values."]
    return []


def _check_against(
    folder: Path,
    source: str | Path,
    report: PruningReport,
    orders: Orders,
    found: Verification,
    trust_remote_code: bool,
) -> None:
    """Compare all that lies in the files, and the model where the files alone cannot say it.

    That is where the source is no folder, and where channels are in another order: the orders that
    were folded into the checkpoint are folded into the source first.
    """
    new = load_weights(folder, trust_remote_code=trust_remote_code, stream=True)
    old = load_weights(source, trust_remote_code=trust_remote_code, stream=True)
    reordered = orders.residual is not None or bool(orders.folded)
    ours, theirs = origin_of(new), origin_of(old)
    if ours is not None and theirs is not None:
        changes = Changes.of(report, new, reordered)
        found.problems += compare(ours, theirs, changes, source)
        found.checks.append(f"all tensors, fields and files, bit for bit, against {source}")
    if report.structured is not None:
        structured.check_against(new, old, source, report, found)
    elif reordered or theirs is None:
        problems, checked = compare_models(new, old, source, report, orders)
        found.problems += problems
        found.checks.append(checked)


def _is_one_of(name: str, carried: Sequence[str]) -> bool:
    """Whether a tensor of the model's naming is one that was carried along under its own name.

    One that is merged from several as it is loaded is known by the module that holds it.
    """
    module = f"{name.rpartition('.')[0]}."
    return any(
        name == x or name.endswith(f".{x}") or x.endswith(f".{name}") or x.startswith(module)
        for x in carried
    )


def _check_reload(
    folder: Path,
    report: PruningReport | None,
    found: Verification,
    trust_remote_code: bool,
    packed: bool,
) -> None:
    found.in_files = bool(found.problems)
    if report is not None and read_widths(folder) is not None:
        structured.check_reload(folder, report, trust_remote_code, found)
        return
    converted = Scratch()
    size = sum(file.stat().st_size for file in set(check_shards(folder).values()))
    # Then layer by layer, from the disk; packed ones are unpacked into memory in any case.
    large = not packed and size > available_memory() / 2
    where = str(converted.path) if large else ""
    auto = auto_name(folder)
    seen, last = asked(RELOAD, folder, str(trust_remote_code), where, auto)
    if seen is None:
        found.problems.append(f"{auto} cannot load it in a fresh process: {last}")
        return
    if not seen["finite"]:
        found.problems.append("Its logits hold NaN or inf in a fresh process.")
    carried = report.source.carried if report is not None and report.source is not None else []
    for kind in ("missing", "unexpected"):
        names = [x for x in seen[kind] if kind == "missing" or not _is_one_of(x, carried)]
        if names:
            found.problems.append(f"A fresh load reports {kind} tensors: {names[:3]}.")
    found.checks.append("reload by plain transformers in a fresh process, finite logits")
