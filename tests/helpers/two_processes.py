"""What ``test_parallel`` looks at: run in each of two processes, many things in one start.

Each process writes what it has into ``FOLDER/rank-R``; the first also writes checkpoints.
"""

import json
from contextlib import suppress
from unittest import mock

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import prunus
from helpers.models import MODELS
from prunus.base.errors import InputError, PrunusError, TeamError
from prunus.base.team import Team
from prunus.maths.gram import Gram
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import MRP, Compose, SparseGPT
from prunus.maths.refinements import Swaps
from prunus.maths.scores import Wanda
from prunus.maths.stats import ColumnNorm, Statistics, TokenSample
from prunus.maths.updates import LeastSquares, SparseGPTSweep
from prunus.run import gather as gathering
from prunus.run import loop as engine
from prunus.run.observer import Silent

LLAMA = MODELS / "llama"
FAST = {"samples": 5, "length": 64}
RUNS = {
    "wanda": {"method": "wanda"},
    "sparsegpt": {"method": "sparsegpt", "true_sequential": True},
    "mrp": {"method": "mrp-sm"},
    "updated": {"method": "ria", "update": "least-squares", "pattern": "2:4"},
    "folded": {"method": "mrp-mm", "pattern": "2:4", "permutation": "fold"},
    "gathered": {"method": "wanda", "pattern": "2:4", "permutation": "gather"},
    "dass": {"method": "dass", "update": "sparsegpt"},
    "magnitude": {"method": "magnitude"},
    "owl by row": {"method": "sparsegpt", "pattern": "row", "allocation": "owl"},
    "searched": {
        "method": "ria", "allocation": "evolve", "settings": {"allocation.generations": 1},
    },
    "swapped": {"method": "mrp-sm", "pattern": "column", "refine": "swaps"},
    "besa": {"method": "besa", "settings": {"allocation.steps": 12}},
    "reconstructed": {
        "method": "wanda", "reconstruct": "block",
        "settings": {"reconstruct.steps": 6, "reconstruct.batch": 2},
    },
    "reconstructed in twos": {
        "method": "wanda", "reconstruct": "block",
        "settings": {"reconstruct.steps": 6, "reconstruct.batch": 2, "reconstruct.blocks": 2},
    },
    "joint": {
        "method": "besa", "bits": 4, "group": 16, "quantize": "before",
        "settings": {"allocation.steps": 6, "allocation.granularity": "two-blocks"},
    },
}  # fmt: skip
UNITS = {
    "goa": {"method": "goa", "sparsity": 0.4, "recovery": "both"},
    "threshold": {"method": "goa", "settings": {"heads.threshold": 0.6}},
    "flap": {"method": "flap", "sparsity": 0.4},
    "llm-pruner": {"method": "llm-pruner", "sparsity": 0.4},
    "second order": {
        "method": "llm-pruner",
        "sparsity": 0.4,
        "settings": {"heads.order": "mixed", "neurons.order": "second"},
    },
    "query heads": {"method": "goa", "sparsity": 0.5, "settings": {"query_heads": True}},
    "recovery text": {
        "method": "goa",
        "sparsity": 0.4,
        "blocks": "0:2",
        "recovery": "both",
        "recovery_text": "builtin",
        "recovery_samples": 5,
        "settings": {"recovery_target": "stream", "recovery_behind": True},
    },
    "random": {"method": "random", "settings": {"target": "neurons"}},
}
PRUNERS = {
    "sparsegpt layer": SparseGPT(Unstructured("layer"), block_size=8),
    "sparsegpt row": SparseGPT(Unstructured("row"), block_size=8),
    "sparsegpt 2:4": SparseGPT(NM(2, 4), block_size=8),
    "mrp column": MRP(Unstructured("column"), block_size=8),
    "mrp layer, refined": MRP(Unstructured("layer"), block_size=8, refinement=Swaps()),
    "mrp 2:4, mask M": MRP(NM(2, 4), "M", block_size=8),
    "direct": Compose(Wanda(), Unstructured("row"), update=LeastSquares(method="direct")),
    "swept": Compose(Wanda(), Unstructured("row"), update=SparseGPTSweep(block_size=8)),
}
ROWS = (1, 2, 3, 10)
RESUMED = ("folded", "joint", "flap")  # others are killed: test_parallel


def layer(rows):
    generator = torch.Generator().manual_seed(rows)
    mixing_II = torch.randn(24, 24, generator=generator)
    inputs_TI = torch.randn(310, 24, generator=generator) @ mixing_II
    inputs_TI[:, 5] = 0
    return torch.randn(rows, 24, generator=generator), inputs_TI


def gathered(inputs_TI, team):
    """The statistics of a process's share of the tokens; two thirds of them are the first's."""
    share = [slice(0, 200), slice(200, None)][team.rank] if team.size > 1 else slice(None)
    stats = Statistics((ColumnNorm, Gram, TokenSample), inputs_TI.shape[1])
    stats.update(inputs_TI[share])
    stats.merge(team)
    return stats


def numbers(stats):
    return {
        "rms": stats[ColumnNorm].rms_I,
        "gram": stats[Gram].matrix_II,
        "sample": stats[TokenSample].inputs_TI,
    }


def pruned_layers(team):
    found = {}
    for rows in ROWS:
        weight_OI, inputs_TI = layer(rows)
        stats = gathered(inputs_TI, team)
        found |= {f"{rows} {name}": tensor for name, tensor in numbers(stats).items()}
        for name, pruner in PRUNERS.items():
            found[f"{rows} {name}"] = pruner(weight_OI, stats, 0.5).weight_OI
    return {name: tensor.contiguous() for name, tensor in found.items()}


def run_statistics():
    """A list that fills with the statistics of every block that is pruned from now on."""
    found, own = [], engine.recorded

    def watched(block, *args, **kwargs):
        stats = own(block, *args, **kwargs)
        if isinstance(stats, dict) and not isinstance(stats, gathering.Weightless):
            kinds = (ColumnNorm, Gram, TokenSample)
            found.append(
                {
                    f"{site} {kind.__name__}": value
                    for site in block.sites
                    for kind in kinds
                    if kind in stats[site]
                    for value in (_value(stats[site][kind]),)
                }
            )
        return stats

    engine.recorded = watched
    return found


def _value(statistic):
    for name in ("rms_I", "matrix_II", "inputs_TI"):
        if hasattr(statistic, name):
            return getattr(statistic, name).clone()
    raise AssertionError(statistic)


class Ends(Silent):
    def block(self, index, total, name, step):
        if (index, step) == (1, "advance"):
            raise KeyboardInterrupt


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except PrunusError as error:
        return [type(error).__name__, str(error), getattr(error, "said", None)]
    return None


def devices(team):
    """Where two GPUs are, and where there is one."""
    names, found = ("cpu", "cuda", "cuda:5"), []
    with mock.patch("torch.cuda.set_device"), mock.patch("torch.cuda.device_count") as count:
        count.return_value = 2
        found += [str(team.device(torch.device(name))) for name in names]
        count.return_value = team.local
        with suppress(TeamError):
            found.append(str(team.device(torch.device("cuda"))))
    return found


def talk(team):
    """Every way in which the processes speak."""
    rows = torch.arange(6.0).view(3, 2)[: team.rank + 1] + 10 * team.rank
    summed = torch.tensor([1.0, 2.0]) * (team.rank + 1)
    team.sum_(summed)
    half = torch.full((3, 2), team.rank + 1.0, dtype=torch.bfloat16).T
    team.broadcast_(half)

    def fails(*ranks):
        with team.agreed():
            if team.rank in ranks:
                raise InputError(f"process {team.rank} cannot")

    return {
        "gathered": team.gather(rows).tolist(),
        "none": team.gather(rows[: 2 * team.rank]).tolist(),
        "bools": team.gather(rows > 1).tolist(),
        "summed": summed.tolist(),
        "half": half.tolist(),
        "total": team.total(0.5, team.rank),
        "told": team.told({"rank": team.rank, "words": ["a\u00e4", None]}),
        "device": devices(team),
        "nobody": error_of(fails),
        "second": error_of(fails, 1),
        "both": error_of(fails, 0, 1),
    }


NAN = float("nan")


def prune_nan(team):
    """A model that fails on a token that only the last of five samples has."""
    model = AutoModelForCausalLM.from_pretrained(LLAMA).eval()
    table = model.model.embed_tokens  # finite itself: that is looked at before the work
    table.register_forward_hook(
        lambda _, ids, out: out.masked_fill((ids[0] == 499)[..., None], NAN)
    )
    tokens_ST = torch.arange(5 * 32).view(5, 32)
    tokens_ST[4, 7] = 499
    prunus.prune(model, method="wanda", tokens_ST=tokens_ST, team=team)


def main(folder):
    with Team.join() as team:
        own = folder / f"rank-{team.rank}"
        own.mkdir()
        said = talk(team)
        save_file(pruned_layers(team), own / "layers.safetensors")
        stats = run_statistics()
        for name, run in RUNS.items():
            stats.clear()
            prunus.prune(LLAMA, output=folder / name, team=team, **run, **FAST)
            named = {f"{i} {k}": x for i, found in enumerate(stats) for k, x in found.items()}
            save_file(named or {"none": torch.zeros(1)}, own / f"{name}.safetensors")
        held = prunus.prune(LLAMA, team=team, method="mrp-sm", **FAST)
        save_file(dict(held.model.model.layers.state_dict()), own / "held.safetensors")
        for name, run in UNITS.items():
            prunus.prune(LLAMA, output=folder / name, team=team, **run, **FAST)
        for name in RESUMED:
            output, run = folder / f"{name}-again", {**RUNS, **UNITS}[name]
            try:
                prunus.prune(LLAMA, output=output, team=team, observer=Ends(), **run, **FAST)
            except KeyboardInterrupt:
                again = {"output": output, "team": team, "resume": True}
                prunus.prune(LLAMA, **again, **run, **FAST)
        other = {"output": folder / "deep" / "none", "team": team, "method": "wanda"}
        said["few"] = error_of(prunus.prune, LLAMA, samples=1, length=64, **other)
        seed = {"seed": team.rank}
        said["seed"] = error_of(prunus.prune, LLAMA, **seed, **other, **FAST)
        said["exists"] = error_of(prunus.prune, LLAMA, **{**other, "output": folder / "wanda"})
        said["nan"] = error_of(prune_nan, team)
        (own / "said.json").write_text(json.dumps(said))
