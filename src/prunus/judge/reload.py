"""Check that a checkpoint loads in a fresh process, as any user of it will load it."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.memory import available_memory
from ..base.words import a_few
from ..storage.kinds import auto_name
from ..storage.scratch import Scratch
from ..storage.shards import check_shards
from ..storage.widths import read_widths
from .fresh_process import asked
from .verification import Subject, Verification

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
# prunus alone knows how to put widths.json together with the tensors.
RELOAD_BY_WIDTHS = """
import json, sys, torch
import prunus
model = prunus.load(sys.argv[1], trust_remote_code=sys.argv[2] == "True")
ids = torch.arange(8)[None] % model.get_input_embeddings().weight.shape[0]
with torch.no_grad():
    logits = model(input_ids=ids).logits
print(json.dumps({"finite": bool(logits.isfinite().all()),
                  "parameters": sum(p.numel() for p in model.parameters())}))
"""


def check(subject: Subject, found: Verification) -> None:
    """Load the checkpoint in a fresh process, and look at its logits there."""
    if read_widths(subject.folder) is not None:
        _check_by_widths(subject, found)
        return
    report = subject.report
    converted = Scratch()
    size = sum(file.stat().st_size for file in set(check_shards(subject.folder).values()))
    # Then layer by layer, from the disk; packed ones are unpacked into memory in any case.
    packed = report is not None and report.packed
    where = str(converted.path) if not packed and size > available_memory() / 2 else ""
    auto = auto_name(subject.folder)
    seen, last = asked(RELOAD, subject.folder, str(subject.trust_remote_code), where, auto)
    if seen is None:
        found.problems.append(f"{auto} cannot load it in a fresh process: {last}")
        return
    if not seen["finite"]:
        found.problems.append("Its logits hold NaN or inf in a fresh process.")
    carried = report.source.carried if report is not None and report.source is not None else []
    for kind in ("missing", "unexpected"):
        names = [x for x in seen[kind] if kind == "missing" or not _is_one_of(x, carried)]
        if names:
            found.problems.append(f"A fresh load reports {kind} tensors: {a_few(names)}.")
    found.checks.append("reload by plain transformers in a fresh process, finite logits")


def _is_one_of(name: str, carried: Sequence[str]) -> bool:
    """Whether a tensor that the model names is one that was carried along under its own name.

    A tensor that is merged from several as it is loaded is known by the module that holds it.
    """
    module = f"{name.rpartition('.')[0]}."
    return any(
        name == x or name.endswith(f".{x}") or x.endswith(f".{name}") or x.startswith(module)
        for x in carried
    )


def _check_by_widths(subject: Subject, found: Verification) -> None:
    """Load what has a widths.json with ``prunus.load``."""
    seen, last = asked(RELOAD_BY_WIDTHS, subject.folder, str(subject.trust_remote_code))
    if seen is None:
        found.problems.append(f"prunus.load cannot load it in a fresh process: {last}")
        return
    if not seen["finite"]:
        found.problems.append("Its logits hold NaN or inf in a fresh process.")
    units = subject.report.structured if subject.report is not None else None
    if units is not None and seen["parameters"] != units.parameters[1]:
        found.problems.append(
            f"It has {seen['parameters']:,} parameters in a fresh process; the report says "
            f"{units.parameters[1]:,}."
        )
    found.checks.append("reload by prunus.load in a fresh process, finite logits")
