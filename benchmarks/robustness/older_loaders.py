"""Do pruned checkpoints load in transformers 4, as the models that they were made from do?

    python benchmarks/robustness/older_loaders.py --old PYTHON [MODEL ...]

PYTHON is the interpreter of an environment with torch and transformers 4.57; without MODEL, the
tiny models of the tests, in the form in which transformers 4 saves them. Each is pruned to 50 % by
magnitude, which changes no weight that it keeps. Then the old library loads both folders: the
output must give the logits of the source with the same weights set to zero, to the last bit, and
both tokenizers the same ids. ``make test-transformers-4`` prepares such an environment.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import prunus

MODELS = Path(__file__).parents[2] / "tests" / "models"
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
TEXT = "The plum tree – a Prunus – had been pruned twice in 2024.\n\tIt bore fruit."

# Run by the old interpreter, which has no prunus.
COMPARE = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.logging.set_verbosity_error()
source, pruned = (AutoModelForCausalLM.from_pretrained(x).eval() for x in sys.argv[1:3])
zeros = 0
with torch.no_grad():
    for before, after in zip(source.parameters(), pruned.parameters(), strict=True):
        zeros += int((after == 0).sum() - (before == 0).sum())
        before.mul_(after != 0)
    ids = torch.arange(16)[None] % source.get_input_embeddings().weight.shape[0]
    logits = [x(ids).logits for x in (source, pruned)]
words = [AutoTokenizer.from_pretrained(x)(sys.argv[3])["input_ids"] for x in sys.argv[1:3]]
print(json.dumps({"version": transformers.__version__, "zeros": zeros,
                  "logits": torch.equal(*logits), "ids": words[0] == words[1]}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--old", required=True, help="python with transformers 4.57")
    given = parser.parse_args()
    models = given.models or sorted(x.parent for x in MODELS.glob("*/config.json"))
    print(f"{'model':12} {'files that changed':28} {'zeros':>8}  logits  ids")
    good = [report(model, given.old) for model in models]
    return 0 if all(good) else 1


def report(model: Path, old: str) -> bool:
    """One line of the table; whether everything in it is as it should be."""
    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch) / "source", Path(scratch) / "pruned"
        shutil.copytree(model, source)
        in_the_old_form(source)
        prunus.prune(source, method="magnitude", sparsity=0.5, calibration="none", output=output)
        changed = [name for name in KEPT if not same_bytes(source / name, output / name)]
        command = [old, "-c", COMPARE, str(source), str(output), TEXT]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{model.name:12} does not load: {done.stderr.strip().splitlines()[-1]}")
        return False
    found = json.loads(done.stdout.splitlines()[-1])
    logits, ids = ("same" if found[key] else "OTHER" for key in ("logits", "ids"))
    print(
        f"{model.name:12} {', '.join(changed) or 'none':28} {found['zeros']:8}  {logits:6}  {ids}"
        f"  (transformers {found['version']})"
    )
    return not changed and found["zeros"] > 0 and found["logits"] and found["ids"]


def in_the_old_form(folder: Path) -> None:
    """Rewrite what transformers 5 saves in a form that 4 cannot read, or misreads."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters", None) or {}
    config |= {key: value for key, value in rope.items() if key != "rope_type"}
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    about = folder / "tokenizer_config.json"
    said = json.loads(about.read_text())
    if said.get("tokenizer_class") == "TokenizersBackend":
        said = {**said, "tokenizer_class": "PreTrainedTokenizerFast"}
    about.write_text(json.dumps({k: v for k, v in said.items() if k != "backend"}, indent=2))


def same_bytes(before: Path, after: Path) -> bool:
    """Whether a file came over as it was; one that was never there is none of this."""
    if not before.exists():
        return True
    return after.exists() and before.read_bytes() == after.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
