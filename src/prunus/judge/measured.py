"""What ``prunus bench`` found: each way to run a model, and how fast it was."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Against:
    """One quantity of a way to run, and of the dense model.

    Attributes:
        value: median over the runs.
        dense: the same of the dense model.
        ratio: value over dense, the median of the pairs' ratios.
        runs: the pairs (value, dense), in their order.
    """

    value: float
    dense: float
    ratio: float
    runs: list[tuple[float, float]]

    @classmethod
    def of(cls, pairs: list[tuple[float, float]]) -> Against:
        """Summarise pairs of runs."""
        values, dense = zip(*pairs, strict=True)
        return cls(median(values), median(dense), median(v / d for v, d in pairs), pairs)


@dataclass(frozen=True)
class Model:
    """A model as one way to run has loaded it.

    Attributes:
        way: its name; ``dense`` is the first.
        checkpoint: what was loaded.
        dtype: of the model; of a GGUF what its weights are.
        against: the way that its ratios are taken from, the dense model in the same dtype.
        parameters: of the model, tied ones once.
        weight_bytes: of parameters and buffers, tied ones once.
        disk_bytes: of the folder or file that was loaded.
        rest_bytes: resident memory once it was loaded and had read a token: interpreter, libraries
            and weights; on CUDA what torch allocates there.
        read_bytes: of the weights that a decoded token reads; None: not known.
        share: p, of the bytes that a token reads of the dense model, in layers of another size.
        saving: S, how many times smaller these layers are.
        bound: ``1/((1−p) + p/S)``, what the traffic of weights allows; None: not known.
        kernels: the instruction set that multiplied packed layers; ``none``: torch did, slowly, for
            lack of kernels; None: no layer is packed.
    """

    way: str
    checkpoint: str
    dtype: str
    against: str
    parameters: int
    weight_bytes: int
    disk_bytes: int
    rest_bytes: int
    read_bytes: int | None
    share: float | None
    saving: float | None
    bound: float | None
    kernels: str | None


@dataclass(frozen=True)
class Row:
    """One way to run, at one batch size and length.

    Attributes:
        way: its name.
        batch: rows of the same length.
        prompt: tokens of each.
        prefill: tokens of the prompts per second, all rows together.
        decode: new tokens per second, greedy with the cache, all rows together.
        memory_bytes: highest resident memory of a run, loading aside: interpreter, libraries,
            weights, cache and activations; on CUDA what torch allocates there.
        of_bound: the ratio of decoding over the bound, at batch 1; None: no bound.
    """

    way: str
    batch: int
    prompt: int
    prefill: Against
    decode: Against
    memory_bytes: Against
    of_bound: float | None


@dataclass(frozen=True)
class Bench:
    """Results of ``bench``.

    Attributes:
        models: one for each way to run, the dense model first.
        rows: of every batch size and length, each way.
        new: tokens that a row writes.
        repeats: how often each way ran.
        device: where they ran.
        threads: of torch.
        dense_model: what all was compared with.
    """

    models: list[Model]
    rows: list[Row]
    new: int
    repeats: int
    device: str
    threads: int
    dense_model: str

    def model(self, way: str) -> Model:
        """Return the model of that way."""
        return next(model for model in self.models if model.way == way)

    @property
    def first(self) -> Row:
        """The first way beside the dense model, at the first batch size and length."""
        return next(row for row in self.rows if row.way != self.models[0].way)

    @property
    def prefill(self) -> Against:
        """Tokens of the prompt per second, of the first way beside the dense model."""
        return self.first.prefill

    @property
    def decode(self) -> Against:
        """New tokens per second, of the first way beside the dense model."""
        return self.first.decode

    @property
    def memory_bytes(self) -> Against:
        """Highest resident memory, of the first way beside the dense model."""
        return self.first.memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for ``--json``."""
        return asdict(self)
