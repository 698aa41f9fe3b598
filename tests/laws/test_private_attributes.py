"""What Prunus uses of other libraries without their promise to keep it, in one table.

The syntax trees of ``src`` are searched for attributes that begin with an underscore and are not
our own, and for imports from inside of a library. Each must have a row here that says why it is
needed; each row is tried on the installed versions, so that a release that drops one is named by
this file and not by a run that ends in an AttributeError.
"""

import ast
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM, PreTrainedModel

import prunus

SOURCE = Path(prunus.__file__).parent
LIBRARIES = {
    *("accelerate", "compressed_tensors", "datasets", "gguf", "huggingface_hub", "lm_eval"),
    *("matplotlib", "numpy", "psutil", "pyarrow", "pydantic", "rich", "safetensors", "scipy"),
    *("tokenizers", "torch", "transformers", "typer"),
}


@dataclass(frozen=True)
class Private:
    """A private attribute that nothing public replaces.

    Attributes:
        why: what Prunus reads or sets there.
        holds: tries it; False, or an exception, where the library no longer does what is needed.
    """

    why: str
    holds: Callable[[], object]


def _hooked() -> bool:
    module, hook = nn.Linear(1, 1), ModelHook()
    add_hook_to_module(module, hook)
    return module._hf_hook is hook


def _counts_changes() -> bool:
    tensor = torch.zeros(2)
    before = tensor._version
    tensor.add_(1)
    return tensor._version > before


def _attention_can_be_set() -> bool:
    config = LlamaConfig()
    config._attn_implementation = "eager"
    return config._attn_implementation == "eager"


def _entries() -> bool:
    module = nn.BatchNorm1d(2)
    module._parameters["weight"] = nn.Parameter(torch.full((2,), 3.0), requires_grad=False)
    module._buffers["running_mean"] = torch.full((2,), 5.0)
    return float(module.weight.sum() + module.running_mean.sum()) == 16


PRIVATE = {
    "_attn_implementation": Private(
        "attention maps: set_attn_implementation has no counterpart that reads",
        _attention_can_be_set,
    ),
    "_buffers": Private("streamed blocks: a buffer on the meta device gets a value", _entries),
    "_can_set_experts_implementation": Private(
        "experts one by one: whether the switch does anything to this model",
        MixtralForCausalLM._can_set_experts_implementation,
    ),
    "_experts_implementation": Private(
        "experts one by one: transformers 5.0 has no get_experts_implementation",
        lambda: hasattr(MixtralConfig(), "_experts_implementation"),
    ),
    "_hf_hook": Private("streamed blocks: the files behind accelerate's hooks", _hooked),
    "_keep_in_fp32_modules": Private(
        "streamed blocks: what stays float32 in half precision",
        lambda: hasattr(PreTrainedModel, "_keep_in_fp32_modules"),
    ),
    "_keep_in_fp32_modules_strict": Private(
        "streamed blocks: what stays float32 in bfloat16 too",
        lambda: hasattr(PreTrainedModel, "_keep_in_fp32_modules_strict"),
    ),
    "_keys_to_ignore_on_load_unexpected": Private(
        "origin: tensors of a file that a family leaves out on purpose",
        lambda: hasattr(PreTrainedModel, "_keys_to_ignore_on_load_unexpected"),
    ),
    "_keys_to_ignore_on_save": Private(
        "assembly: tensors that a family computes and does not store",
        lambda: hasattr(PreTrainedModel, "_keys_to_ignore_on_save"),
    ),
    "_parameters": Private("streamed blocks: a meta parameter gets a value", _entries),
    "_version": Private("sites: one address that was changed in between is two", _counts_changes),
}

# Imports from inside of a library. What its documentation has a page for comes first.
DOCUMENTED = {
    *("accelerate.hooks", "safetensors.torch", "scipy.optimize", "scipy.sparse"),
    *("scipy.sparse.csgraph", "scipy.stats", "typer.core"),
    *("matplotlib.figure", "matplotlib.font_manager"),
    *("rich.console", "rich.markup", "rich.progress", "rich.table"),
    *("torch.distributed", "torch.func", "torch.nn.functional", "torch.overrides", "torch.sparse"),
    *("torch.utils.data", "torch.utils.flop_counter"),
    *("huggingface_hub.errors", "pydantic.dataclasses", "pyarrow.parquet"),
    *("lm_eval.models.huggingface", "lm_eval.tasks"),
}
INSIDE = {
    "compressed_tensors.compressors.BaseCompressor": "--pack: its own packing, looked up by name",
    "compressed_tensors.entrypoints.convert.converters.CompressedTensorsDequantizer": (
        "float8 and packed sources: its own decoder"
    ),
    "compressed_tensors.quantization.QuantizationArgs": "--pack: how many bits, in what groups",
    "compressed_tensors.quantization.QuantizationScheme": "--pack: what the config says of a layer",
    "torch.ao.quantization.quantize_dynamic": "bench --as int8: torch's own int8, to compare with",
    "transformers.core_model_loading.revert_weight_conversion": "names on disk of what was merged",
    "transformers.dynamic_module_utils.custom_object_save": "a model's own code goes with it",
    "transformers.integrations.mxfp4.convert_moe_packed_tensors": "MXFP4: 4-bit experts as numbers",
    "transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS": "GGUF: the frequencies of scaled RoPE",
    "transformers.models.auto.modeling_auto": "kinds: what classes a model type has, and for what",
    "transformers.pytorch_utils.Conv1D": "GPT-2's linear layer",
}


@dataclass(frozen=True)
class Use:
    """A line of ours that reaches into a library."""

    place: str
    name: str


def _private(name: str) -> bool:
    if name == "_exit":  # of os, which Python documents
        return False
    return name.startswith("_") and not name.endswith("__") and name.strip("_") != ""


def _trees() -> Iterator[tuple[str, ast.AST]]:
    """Each file, and each script in a string that a fresh interpreter is given."""
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield place, tree
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if "import " in node.value:
                    try:
                        yield f"{place}, script in line {node.lineno}", ast.parse(node.value)
                    except SyntaxError:
                        continue  # a sentence


TREES = list(_trees())


def _own() -> set[str]:
    """Private names of our own classes: methods, fields, what they store in self."""
    found = set()
    for _, tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found |= set(_members(node))
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "new"}:
                    found.add(node.attr)
    return found


def _members(owner: ast.ClassDef) -> Iterator[str]:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _attributes(own: set[str]) -> Iterator[Use]:
    for place, tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                name = node.attr
            elif _asks_by_name(node):
                name = node.args[1].value
            else:
                continue
            if _private(name) and name not in own:
                yield Use(f"{place}:{node.lineno}", name)


def _asks_by_name(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"getattr", "hasattr", "setattr", "delattr"}
        and isinstance(node.args[1], ast.Constant)
    )


def _imports() -> Iterator[Use]:
    for place, tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [f"{alias.name}.*" for alias in node.names]
            else:
                continue
            for name in names:
                if name.partition(".")[0] in LIBRARIES:
                    yield Use(f"{place}:{node.lineno}", name)


def _is_documented(name: str) -> bool:
    module = name.rpartition(".")[0]
    inside = "." in module or any(_private(part) for part in name.split("."))
    return not inside or name in DOCUMENTED or module in DOCUMENTED


ATTRIBUTES = list(_attributes(_own()))
IMPORTS = [use for use in _imports() if not _is_documented(use.name)]


def test_every_private_attribute_of_a_library_has_a_reason():
    unlisted = [f"{use.place} uses {use.name}" for use in ATTRIBUTES if use.name not in PRIVATE]
    assert not unlisted, (
        "use something public, or add a row that says why and tries it: " + "; ".join(unlisted)
    )
    assert PRIVATE.keys() == {use.name for use in ATTRIBUTES}, "a row that nothing uses any more"


def test_every_import_from_inside_of_a_library_has_a_reason():
    unlisted = [f"{use.place} imports {use.name}" for use in IMPORTS if use.name not in INSIDE]
    assert not unlisted, (
        "import what the library documents, or add a row that says why: " + "; ".join(unlisted)
    )
    assert INSIDE.keys() == {use.name for use in IMPORTS}, "a row that nothing imports any more"


def _versions() -> str:
    libraries = (transformers, torch, accelerate)
    return ", ".join(f"{library.__name__} {library.__version__}" for library in libraries)


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_attribute_still_does_what_is_needed_of_it(name):
    places = ", ".join(use.place for use in ATTRIBUTES if use.name == name)
    broken = f"{name} changed in one of {_versions()}. It is for {PRIVATE[name].why}: see {places}"
    try:
        holds = PRIVATE[name].holds()
    except AttributeError as error:
        pytest.fail(f"{broken} ({error})")
    assert holds, broken


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_imported_from_inside_of_a_library_is_still_there(name):
    module, _, leaf = name.rpartition(".")
    if module.startswith("compressed_tensors"):
        pytest.importorskip("compressed_tensors")
    places = ", ".join(use.place for use in IMPORTS if use.name == name)
    broken = f"{name} is gone from one of {_versions()}. It is for {INSIDE[name]}: see {places}"
    try:
        found = hasattr(importlib.import_module(module), leaf)
    except ImportError as error:
        pytest.fail(f"{broken} ({error})")
    assert found, broken


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("config._secret", "_secret"),
        ("getattr(model, '_secret', None)", "_secret"),
        ("self._secret()", "_secret"),
        ("setattr(module, '_secret', 1)", "_secret"),
    ],
)
def test_the_search_sees_what_it_is_for(monkeypatch, line, name):
    monkeypatch.setattr(f"{__name__}.TREES", [("there.py", ast.parse(line))])
    assert list(_attributes(set())) == [Use("there.py:1", name)]


@pytest.mark.parametrize(
    "line", ["from transformers.inside import thing", "import gguf.inside", "from torch import _C"]
)
def test_the_search_sees_imports(monkeypatch, line):
    monkeypatch.setattr(f"{__name__}.TREES", [("there.py", ast.parse(line))])
    assert [_is_documented(use.name) for use in _imports()] == [False]
