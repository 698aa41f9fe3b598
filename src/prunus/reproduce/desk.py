"""The user's model on the paper's protocol, as far as nothing else was asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import api
from ..base.device import Dtype, pick_device
from ..base.errors import InputError
from ..judge.text import read_text
from ..model.blocks import context_length, find_blocks, find_linears
from ..run.finish import Result
from ..storage.checkpoint import load_model, load_tokenizer, load_weights
from ..text import read_documents
from ..text.tokens import calibration_tokens
from .entry import AVERAGE, Entry

RANGES = ("blocks", "skip_blocks")


@dataclass(frozen=True)
class Asked:
    """What a run has in place of the paper's protocol; None: what the paper has.

    Attributes:
        calibration: text SOURCE.
        texts: SOURCEs whose perplexity is measured.
        tasks: whether tasks are run.
        samples: calibration windows.
        length: tokens per window, of calibration and evaluation.
        windows: how many windows of each text are scored; None: all that papers score.
        seeds: runs per cell, seeds 0, 1 …
        limit: questions of each task; None: all.
        output: folder for pictures, checkpoints and unfinished tables; None: nothing is kept.
        data_dir: where named texts lie as files.
        options: of the entry's kind.
        dtype: of the model.
        device: where it runs.
    """

    calibration: str | None = None
    texts: tuple[str, ...] = ()
    tasks: bool = True
    samples: int | None = None
    length: int | None = None
    windows: int | None = None
    seeds: int | None = None
    limit: int | None = None
    output: Path | None = None
    data_dir: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: Dtype = "auto"
    device: str = "auto"

    def of(self, entry: Entry) -> Entry:
        """Return the entry with what was asked for in its protocol.

        Raises:
            InputError: nothing is left to be measured.
        """
        protocol, measures = entry.protocol, entry.measures
        reads = bool(protocol.texts) or entry.kind == "grid"
        texts = list(self.texts) if self.texts and reads else protocol.texts
        tasks = protocol.tasks if self.tasks else {}
        if entry.kind == "grid":
            others = [x for x in measures if x not in protocol.texts]
            gone = [] if self.tasks else [*protocol.tasks, AVERAGE]
            kept = [x for x in measures if x in protocol.texts]
            measures = [*(list(self.texts) or kept), *(x for x in others if x not in gone)]
            if not measures:
                raise InputError(
                    f"{entry.id} measures tasks alone. Give --text SOURCE, or leave out --no-tasks."
                )
        asked = {
            "calibration": self.calibration, "samples": self.samples, "length": self.length,
            "seeds": self.seeds,
        }  # fmt: skip
        changed: dict[str, Any] = {
            name: value for name, value in asked.items() if value is not None
        }
        changed |= {"texts": texts, "tasks": tasks}
        return entry.model_copy(
            update={
                "protocol": protocol.model_copy(update=changed),
                "measures": measures,
                "options": {**entry.options, **self.options},
            }
        )


@dataclass(frozen=True)
class Desk:
    """A model, an entry in terms of that model, and what runs need.

    Attributes:
        model: folder, hub id or GGUF.
        paper: the entry as the paper has it.
        asked: by the user.
        say: told what goes on.
        files: what was written, for the result to name.
        failed: cells without a number, and why.
        read: token ids of evaluation texts, and how many windows of them are scored.
    """

    model: str
    paper: Entry
    asked: Asked
    say: Callable[[str], None] = lambda message: None
    files: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    read: dict[str, tuple[Tensor, int | None]] = field(default_factory=dict)

    @cached_property
    def entry(self) -> Entry:
        """The entry with what was asked for in its protocol."""
        return self.asked.of(self.paper)

    def label(self, column: str, measure: str) -> str:
        """Return the name of a measured number: that of the published one where there is one.

        One text in place of a paper's only text has its label, so that they stand side by side.
        """
        paper, now = self.paper, self.entry
        before = paper.measures
        swapped = len(before) == len(now.measures) == 1 and before[0] in paper.protocol.texts
        if swapped and measure in now.protocol.texts:
            measure = before[0]
        if len(paper.columns) > 1 and before == [measure]:
            return column
        return f"{column}, {measure}" if len(paper.columns) > 1 else measure

    @cached_property
    def dense(self) -> PreTrainedModel:
        """The model as it is, on its device."""
        model = load_model(self.model, dtype=self.asked.dtype)
        model.to(pick_device(self.asked.device))  # type: ignore[arg-type]
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own."""
        return load_tokenizer(self.model)

    @cached_property
    def shape(self) -> tuple[int, int | None]:
        """How many blocks the model has, and the longest text that it takes."""
        if "dense" in vars(self):
            model = self.dense
        else:
            model = load_weights(self.model, stream=True).model
        return len(find_blocks(model)), context_length(model)

    @property
    def length(self) -> int:
        """Tokens per window: the paper's where the model takes as many, if none were asked for."""
        limit, length = self.shape[1], self.entry.protocol.length
        return length if limit is None or self.asked.length is not None else min(limit, length)

    def fields(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return a cell's recipe fields with the protocol's, in terms of this model's depth."""
        protocol = self.entry.protocol
        shared: dict[str, Any] = {"samples": protocol.samples, "length": self.length}
        shared |= {"data_dir": self.asked.data_dir, "calibration": protocol.calibration}
        return {**{k: v for k, v in shared.items() if v is not None}, **self.scaled(recipe)}

    def scaled(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return recipe fields with ranges of blocks in terms of this model's depth."""
        paper = self.entry.protocol.blocks
        if paper is None:
            return dict(recipe)
        blocks = self.shape[0] if {*RANGES} & {*recipe} else 0
        return {k: scaled(v, paper, blocks) if k in RANGES else v for k, v in recipe.items()}

    def prune(self, recipe: Mapping[str, Any], output: Path | None = None) -> Result:
        """Prune a copy of the model; or the model itself into a folder."""
        fields = {**self.fields(recipe), "device": self.asked.device}
        if output is not None:
            return api.prune(self.model, output=output, **fields, dtype=self.asked.dtype)
        return api.prune(copy.deepcopy(self.dense), tokenizer=self.tokenizer, **fields)

    def perplexity(self, model: PreTrainedModel, text: str) -> float:
        """Score a model on a text by the protocol."""
        ids_T, most = self._tokens(text)
        found = api.evaluate(
            model, ids_T, length=self.length, windows=most, device=self.asked.device
        )
        return found.perplexity

    def _tokens(self, text: str) -> tuple[Tensor, int | None]:
        """Return all token ids of an evaluation text, and how many windows are scored."""
        if text not in self.read:
            asked = read_text(
                text, self.tokenizer, None, "auto", self.asked.data_dir, self.say, False
            )
            ids_T, _ = asked.tokens(self.dense, self.tokenizer, self.length, self.say)
            self.read[text] = ids_T, asked.most(self.asked.windows)
        return self.read[text]

    def calibration(self, source: str | None = None) -> Tensor:
        """Draw calibration token ids (samples, length), of the protocol's text or another."""
        protocol = self.entry.protocol
        source = source or protocol.calibration or "builtin"
        documents = read_documents(
            source, "calibration", self.asked.data_dir, tokenizer=self.tokenizer
        )
        ids_ST, _ = calibration_tokens(
            self.dense, self.tokenizer, documents,
            samples=protocol.samples, length=self.length, seed=0, bos="auto", say=self.say,
        )  # fmt: skip
        return ids_ST

    def evaluation(self, most: int) -> Tensor:
        """Return the first windows (at most so many, length) of the first evaluation text."""
        text = self.entry.protocol.texts[0]
        ids_T, windows = self._tokens(text)
        count = min(len(ids_T) // self.length, windows or most, most)
        if count < 1:
            raise InputError(
                f"{text} has {len(ids_T)} tokens, fewer than one window of {self.length}. Give "
                "another --text, or a shorter --length."
            )
        return ids_T[: count * self.length].view(count, self.length)

    def unlike(self) -> list[str]:
        """Say where the run differs from the paper's protocol."""
        before, now = self.paper.protocol, self.entry.protocol
        named = {
            name: (getattr(before, name), getattr(now, name)) for name in type(now).model_fields
        }
        named["length"] = before.length, self.length
        named["texts"] = before.texts, now.texts
        found = [
            f"{name}: {_shown(is_now)} (paper: {_shown(was)})"
            for name, (was, is_now) in named.items()
            if was != is_now
        ]
        if self.asked.windows is not None and now.texts:
            found.append(f"windows scored: the first {self.asked.windows} (paper: all)")
        if self.asked.limit is not None and now.tasks:
            found.append(f"questions of each task: the first {self.asked.limit} (paper: all)")
        models = ", ".join(before.models)
        return [f"model: {self.model}" + (f" (paper: {models})" if models else ""), *found]

    def writes(self, name: str) -> Path | None:
        """Return the path of a file that is about to be written; None where nothing is kept."""
        if self.asked.output is None:
            return None
        self.asked.output.mkdir(parents=True, exist_ok=True)
        self.files.append(str(self.asked.output / name))
        return self.asked.output / name

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield the folder for checkpoints and tables: the run's own, or one that goes after it."""
        with TemporaryDirectory(prefix="prunus-") as temporary:
            yield Path(temporary) if self.asked.output is None else self.asked.output

    def pictures(self) -> bool:
        """Whether pictures can be drawn; without matplotlib the numbers are all there is."""
        found = find_spec("matplotlib") is not None
        if not found and self.asked.output is not None:
            self.say("No picture: it needs matplotlib (pip install 'prunus[report]').")
        return found

    def linears(self, block: int) -> dict[str, nn.Module]:
        """Return the linear layers of a block of the dense model by their path within it.

        Raises:
            InputError: the model has no such block.
        """
        blocks = list(find_blocks(self.dense).items())
        if not 0 <= block < len(blocks):
            raise InputError(f"There is no block {block}; the model has 0 to {len(blocks) - 1}.")
        name, module = blocks[block]
        found = find_linears(name, module)
        return {full.removeprefix(f"{name}."): layer for full, layer in found.items()}

    def all_linears(self) -> dict[str, nn.Module]:
        """Return those of all blocks: ``mlp.up_proj 3`` is that of block 3."""
        return {
            f"{path} {block}": layer
            for block in range(self.shape[0])
            for path, layer in self.linears(block).items()
        }


def scaled(asked: str, paper: int, blocks: int) -> str:
    """Return A:B of a paper's blocks as the same share of a model's.

    >>> scaled("4:30", 32, 30)
    '4:28'
    """
    first, last = (round(int(end) * blocks / paper) for end in asked.split(":"))
    first = min(first, blocks - 1)
    return f"{first}:{max(last, first + 1)}"


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)
