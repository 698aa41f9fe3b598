"""The referee of a refactoring: one small run of every method, pattern and option, as digests.

    python benchmarks/robustness/digests.py --write before.json     # with the code to compare with
    python benchmarks/robustness/digests.py --against before.json   # with the changed code

The second exits with 1 if any run differs, and says in what: which tensors, and which fields of the
report, the config, the recipe or the plan, with both values. ``digest_cases.py`` has the runs.

Only public calls are made, so that any inner module may move. Times, versions, memory and the
place of the temporary folder are left out; everything else that is written is compared, except the
model card, which repeats the report. The last bits of a float depend on the processor, the number
of threads and the versions of the libraries: write and compare on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
import yaml
from digest_cases import CASES, TEXT, Case, models  # type: ignore[import-not-found]
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunus

VARIES = ("seconds", "versions", "rehearsed", "peak_bytes", "available_bytes")
CARD, RECIPE, REPORT = "README.md", "recipe.yaml", "pruning_report.json"
ABSENT = "(absent)"
SHOWN = 8  # differences of one run
Fields = Mapping[str, Any]
RUN = subprocess.run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--against", type=Path, metavar="FILE")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of the names of runs")
    given = parser.parse_args()
    before = json.loads(given.against.read_text()) if given.against else None
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = [name for name in CASES if given.only in name]
    now = {"machine": machine(), "runs": dict(digests(names))}
    failed = {name: run["error"] for name, run in now["runs"].items() if "error" in run}
    for name, error in failed.items():
        print(f"{name} failed: {error}")
    print(f"{len(names)} runs, {len(failed)} of them failed; {time.process_time():.0f} s of work")
    if before is None:
        given.write.write_text(json.dumps(now, indent=1) + "\n")
        equal = True
    else:
        equal = same(before, now, given.only)
    sys.exit(0 if equal and not failed else 1)


def machine() -> dict[str, Any]:
    """Return what the last bits depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def digests(names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each run, what it left."""
    cases = {name: CASES[name] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary).resolve()
        models(work, {case.model for case in cases.values()})
        for name, case in cases.items():
            begun = time.process_time()
            yield name, digest(work, case)
            print(f"{time.process_time() - begun:5.1f} s  {name}", file=sys.stderr, flush=True)


def digest(work: Path, case: Case) -> dict[str, Any]:
    """One run in a folder of its own. One that fails leaves its error."""
    folder, fields = work / "run", dict(case.fields)
    folder.mkdir()
    if str(fields.get("calibration")).startswith("TEXTS"):
        fields["calibration"] = str(work / fields["calibration"])
    torch.manual_seed(0)
    try:
        with mock.patch("subprocess.run", in_this_process):
            found = DO[case.do](folder / "out", work / case.model, fields)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    finally:
        shutil.rmtree(folder)
    return json.loads(json.dumps(steady(found, str(work)), default=str))


def in_this_process(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Return what a fresh interpreter would print, without the 15 seconds of its start.

    Every written checkpoint is reloaded in one. That is tested elsewhere; here it costs most of the
    time. Starting a process is the seam that stays where it is when modules move.
    """
    if command[:2] != [sys.executable, "-c"]:
        return RUN(command, **options)
    said = io.StringIO()
    with mock.patch.object(sys, "argv", ["-c", *command[3:]]), redirect_stdout(said):
        exec(command[2], {"__name__": "__main__"})
    return subprocess.CompletedProcess(command, 0, said.getvalue(), "")


def steady(value: Any, work: str) -> Any:
    """Without what is another in every run."""
    if isinstance(value, Mapping):
        return {str(k): steady(v, work) for k, v in value.items() if k not in VARIES}
    if isinstance(value, list | tuple):
        return [steady(x, work) for x in value]
    if isinstance(value, Tensor):
        return value.tolist()
    return value.replace(work, "WORK") if isinstance(value, str) else value


class Stops(prunus.Silent):
    """Ends a run in the middle: when a step of a block begins, once a block is on disk."""

    def block(self, index: int, total: int, name: str, step: str) -> None:
        """Press Ctrl-C."""
        if index == 1 and step == "advance":
            raise KeyboardInterrupt


# What is done with a case: with a folder for what is written, the model, and the fields.


def written(out: Path, source: Any, fields: Fields) -> dict[str, Any]:
    result = prunus.prune(source, output=out, observer=prunus.Silent(), **fields)
    proof = result.verification
    found = {"problems": proof.problems, "sparsity": proof.sparsity, "patterns": proof.patterns}
    return {**of_folder(out), "verification": found}


def interrupted(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    with suppress(KeyboardInterrupt):
        prunus.prune(source, output=out, observer=Stops(), **fields)
        raise RuntimeError("the run was not interrupted")
    return written(out, source, {**fields, "resume": True})


def spilled(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    return written(out, source, {**fields, "spill": out.parent / "spill"})


def in_memory(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(source)
    result = prunus.prune(loaded(source), tokenizer=tokenizer, observer=prunus.Silent(), **fields)
    tensors = of_tensors(result.model.state_dict().items())
    return {"tensors": tensors, "report": asdict(result.report), "orders": asdict(result.orders)}


def in_memory_written(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(source)
    return written(out, loaded(source), {**fields, "tokenizer": tokenizer})


def planned(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    plan = prunus.plan(source, observer=prunus.Silent(), **fields)
    return {"plan": plan.to_dict(), "words": getattr(plan, "speed", None)}


def quantized(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    prunus.quantize(source, output=out, observer=prunus.Silent(), **fields)
    return of_folder(out)


def then_quantized(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    first = out.with_name("first")
    prunus.prune(source, output=first, observer=prunus.Silent(), **fields)
    return quantized(out, first, {"bits": 4, "group": 32, **TEXT})


def again_by_recipe(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    first = out.with_name("first")
    prunus.prune(source, output=first, observer=prunus.Silent(), **fields)
    return written(out, source, {"recipe": first / RECIPE, "seed": 1})


def judged(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    """Return what the other calls make of a checkpoint."""
    prunus.prune(source, output=out, observer=prunus.Silent(), **fields)
    proof = prunus.verify(out, source=source)
    score = prunus.evaluate(out, "builtin", length=64, windows=4, observer=prunus.Silent())
    model = prunus.load(out)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(64)[None]).logits
    widths = json.loads((out / REPORT).read_text())["structured"]
    return {
        "problems": proof.problems,
        "patterns": proof.patterns,
        "perplexity": score.perplexity,
        "loaded": of_tensors([*model.state_dict().items(), ("logits", logits)]),
        "cycles": None if widths else prunus.simulate(out),
    }


def exported(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    prunus.prune(source, output=out, observer=prunus.Silent(), **fields)
    prunus.write_gguf(out, out.with_name("out.gguf"))
    return {"gguf": sha(out.with_name("out.gguf").read_bytes())}


def through_gguf(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    """Pruned, exported, and the export pruned once more."""
    found = exported(out, source, fields)
    file = out.with_name("out.gguf")
    again = prunus.prune(file, method="magnitude", sparsity=0.7, observer=prunus.Silent())
    return {**found, "tensors": of_tensors(again.model.state_dict().items())}


def table(out: Path, source: Path, fields: Fields) -> dict[str, Any]:
    """Return the table of methods, without its sentences."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["prunus", "methods", "--json"]),
        redirect_stdout(said),
        suppress(SystemExit),
    ):
        runpy.run_module("prunus", run_name="__main__")
    rows = json.loads(said.getvalue())
    missing = set(rows) - {case.fields.get("method") for case in CASES.values()}
    if missing:
        raise RuntimeError(f"no run has the methods {missing}")
    return {
        name: {k: row[k] for k in ("parts", "allocation", "needs")} for name, row in rows.items()
    }


def loaded(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source).eval()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_tensor(name: str, tensor: Tensor) -> str:
    said = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return sha(said + flat.numpy().tobytes())


def of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Of each tensor, and of all together."""
    each = {name: of_tensor(name, tensor) for name, tensor in sorted(tensors, key=lambda x: x[0])}
    return {
        "all": sha("".join(each.values()).encode()),
        "each": {k: v[:16] for k, v in each.items()},
    }


def of_folder(folder: Path) -> dict[str, Any]:
    """Every file of a checkpoint but its card; of JSON and YAML also what they say."""
    tensors, files, content = [], {}, {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CARD):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors += [(key, file.get_tensor(key)) for key in file.keys()]
        if name == RECIPE:
            content[name] = yaml.safe_load(path.read_text())
        elif path.suffix == ".json" and not name.startswith("tokenizer"):
            content[name] = json.loads(path.read_text())
        files[name] = None if name in (RECIPE, REPORT) else sha(path.read_bytes())
    return {"tensors": of_tensors(tensors), "files": files, **content}


def same(before: dict[str, Any], now: dict[str, Any], only: str) -> bool:
    """Whether all runs are; prints what differs, run by run and then field by field."""
    for what, value in differences(before["machine"], now["machine"]):
        print(f"NOT THE SAME MACHINE, so last bits may differ: {what}: {value}")
    old, new = ({n: run for n, run in x["runs"].items() if only in n} for x in (before, now))
    names, equal, fields = dict.fromkeys([*old, *new]), 0, Counter[str]()
    for name in names:
        found = list(changes(old[name], new[name])) if name in old and name in new else []
        if name not in old or name not in new:
            print(f"{name}: only {'now' if name in new else 'before'}")
        elif not found:
            equal += 1
            continue
        else:
            print(f"{name}:", *(f"  {what}: {how}" for what, how in found[:SHOWN]), sep="\n")
            if len(found) > SHOWN:
                print(f"  and {len(found) - SHOWN} more")
        fields.update({re.sub(r"\[\d+\]", "[]", what) for what, _ in found})
    for what, count in fields.most_common():
        print(f"{count} runs differ in {what}")
    print(f"{equal} of {len(names)} runs are equal bit for bit")
    return equal == len(names)


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """List what differs of one run, and how."""
    for key in dict.fromkeys([*old, *new]):
        was, is_ = old.get(key, ABSENT), new.get(key, ABSENT)
        if key not in ("tensors", "loaded") or ABSENT in (was, is_):
            yield from differences(was, is_, key)
            continue
        each = {*was["each"], *is_["each"]}
        other = sorted(x for x in each if was["each"].get(x) != is_["each"].get(x))
        if other:
            few = ", ".join(other[:SHOWN]) + (" …" if len(other) > SHOWN else "")
            yield key, f"{len(other)} of {len(each)} differ: {few}"


def differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Where two contents differ, and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(
                old.get(key, ABSENT), new.get(key, ABSENT), f"{at}.{key}".lstrip(".")
            )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (was, is_) in enumerate(zip(old, new, strict=True)):
            yield from differences(was, is_, f"{at}[{i}]")
    elif old != new:
        yield at, f"{short(old)} → {short(new)}"


def short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 100 else f"{said[:97]}…"


DO: dict[str, Callable[[Path, Any, Fields], dict[str, Any]]] = {
    f.__name__: f
    for f in (
        *(written, interrupted, spilled, in_memory, in_memory_written, planned, quantized),
        *(then_quantized, again_by_recipe, judged, exported, through_gguf, table),
    )
}

if __name__ == "__main__":
    main()
