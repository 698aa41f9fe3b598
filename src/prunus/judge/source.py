"""Check that a checkpoint differs from its source only where it was to be pruned."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..base.errors import InputError
from ..maths.contracts import parameter_of
from ..model.blocks import find_blocks, find_linears
from ..model.experts import Expert
from ..storage.checkpoint import load_weights
from ..storage.origin import origin_of
from .comparison import Changes, compare, compare_models, on_disk
from .verification import Subject, Verification


def check(subject: Subject, found: Verification) -> None:
    """Compare all that lies in the files, and the models where files alone cannot tell.

    That is where the source is no folder, where channels are in another order (the orders that were
    folded into the checkpoint are folded into the source first), and where tensors are merged.

    Raises:
        InputError: the checkpoint has no report, and the source is no folder.
    """
    source, report, trust = subject.source, subject.report, subject.trust_remote_code
    assert source is not None
    new = load_weights(subject.folder, trust_remote_code=trust, stream=True)
    old = load_weights(source, trust_remote_code=trust, stream=True)
    orders = subject.orders
    reordered = orders.residual is not None or bool(orders.folded)
    ours, theirs = origin_of(new), origin_of(old)
    if report is None:
        if ours is None or theirs is None:
            raise InputError("--source compares folders of safetensors; give the source's folder.")
        free = on_disk(new, _linear_parameters(new.model))
        found.problems += compare(ours, theirs, Changes(free, free), source)
        found.checks.append(f"everything but those layers, bit for bit, against {source}")
        return
    changes = Changes.of(report, new, old, reordered)
    if ours is not None and theirs is not None:
        found.problems += compare(ours, theirs, changes, source)
        found.checks.append(f"all tensors, fields and files, bit for bit, against {source}")
    if reordered or changes.apart or ours is None or theirs is None:
        only = None if reordered or theirs is None else changes.apart
        problems, checked = compare_models(new, old, source, report, orders, only)
        found.problems += problems
        found.checks.append(checked)


def _linear_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters that hold linear layers and experts of the blocks."""
    names: set[str] = set()
    for name, block in find_blocks(model).items():
        for layer, module in find_linears(name, block).items():
            index = module.index if isinstance(module, Expert) else None
            names.add(parameter_of(layer, index))
    return names
