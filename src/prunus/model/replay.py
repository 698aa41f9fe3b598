"""A model's calls to its blocks, recorded, and replayed one block at a time.

The calls are the model's own: every argument of every block is captured from a real forward
(masks and rotary embeddings can differ per block, some are None), none is rebuilt by hand.
``record`` runs that forward with the blocks' computation left out, so a sample costs an embedding
look-up. That is sound when no argument depends on an earlier block's output. Stand-ins therefore
put out nonsense where blocks put out more than hidden states, and ``check_replay`` proves on one
batch, before anything is pruned, that nothing depends on it.
"""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..base.errors import NumericalError, UnsupportedModelError
from ..maths.held_out import groups_of
from .samples import Sample, Samples, keywords, token_ids


@dataclass(frozen=True)
class Call:
    """One recorded call of a block, without its hidden states.

    Attributes:
        args: the other positional arguments.
        kwargs: the other keyword arguments.
        keyword: the name under which the hidden states came; None: as the first positional one.
        added: what the model adds to the block's output on the way to the next one, such as
            features of images (Qwen3-VL); None: nothing.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keyword: str | None
    added: Tensor | None = None

    def __call__(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Run the block on ``hidden`` (B, T, d), all else equal; return the next block's input."""
        args, kwargs = map_tensors((self.args, dict(self.kwargs)), lambda t: t.to(hidden.device))
        if self.keyword is None:
            output = hidden_of(module(hidden, *args, **kwargs))
        else:
            output = hidden_of(module(*args, **{self.keyword: hidden}, **kwargs))
        return output if self.added is None else output + self.added.to(output)

    def float(self) -> Call:
        """Return the same call with every floating tensor in float32."""
        args, kwargs = map_tensors(
            (self.args, dict(self.kwargs)), lambda t: t.float() if t.is_floating_point() else t
        )
        return replace(self, args=args, kwargs=kwargs)

    def apart(self, left: dict[int, UserDict[Any, Any]]) -> Call:
        """Return the call with copies of what blocks write into: those of ``left``, by id."""

        def own(value: Any) -> Any:
            if not isinstance(value, UserDict):
                return value
            return left.setdefault(id(value), value.copy())

        kwargs = {name: own(value) for name, value in self.kwargs.items()}
        return replace(self, args=tuple(map(own, self.args)), kwargs=kwargs)

    @staticmethod
    def split(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Call, Tensor]:
        """Separate a call from the hidden states that it was given."""
        if args:
            return Call(args[1:], kwargs, None), args[0]
        keyword = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        rest = {name: value for name, value in kwargs.items() if name != keyword}
        return Call((), rest, keyword), kwargs[keyword]


class Hidden(Protocol):
    """A list of activations, in memory or on disk."""

    def append(self, tensor: Tensor, /) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...
    def __setitem__(self, index: int, tensor: Tensor, /) -> None: ...
    def copy(self) -> Hidden: ...


@dataclass
class Recording:
    """The calibration set on its way through the model.

    Attributes:
        hidden: per sample, the input of the next block, in the model's dtype.
        calls: per block and sample, the rest of the call; equal tensors are held once.
        min_tokens: an expert that is given fewer of them counts as given none; see ``routing``.
        first: the number of its first sample; other processes have those before it.
        total: how many samples all processes have together; 0: those that are here.
        weights: how much each token of each sample counts in statistics; None: all alike.
        texts: the samples of all processes, as they were recorded; None: nobody asks for them.
    """

    hidden: Hidden
    calls: list[list[Call]]
    min_tokens: int | None = None
    first: int = 0
    total: int = 0
    weights: Sequence[Tensor] | None = None
    texts: Samples | None = None

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """A number for each sample of all processes, the same for those with text in common."""
        return () if self.texts is None else groups_of(token_ids(self.texts))

    @property
    def samples(self) -> int:
        """How many samples all processes have together."""
        return self.total or len(self.hidden)

    def beginning(self, samples: int) -> Recording:
        """Return a recording of those that are here of the first samples of all processes."""
        own = max(min(samples - self.first, len(self.hidden)), 0)
        return replace(
            self,
            hidden=[self.hidden[i] for i in range(own)],
            calls=[block[:own] for block in self.calls],
            total=min(samples, self.samples),
            weights=None if self.weights is None else self.weights[:own],
            texts=None if self.texts is None else self.texts[:samples],
        )

    def copy(self) -> Recording:
        """Copy the samples, so that they can continue separately.

        So do the keys and values that blocks leave for later ones beside the stream (Gemma 4).
        """
        left: dict[int, UserDict[Any, Any]] = {}
        calls = [[call.apart(left) for call in block] for block in self.calls]
        return replace(self, hidden=self.hidden.copy(), calls=calls)

    def advance(
        self,
        block: int,
        module: nn.Module,
        device: torch.device,
        advanced: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Replace the inputs of ``block`` by its outputs, and drop its calls."""
        for i, call in enumerate(self.calls[block]):
            home = self.hidden[i].device
            self.hidden[i] = call(module, self.hidden[i].to(device)).to(home)
            advanced(i + 1, len(self.hidden))
        self.calls[block] = []


@dataclass(frozen=True)
class Trace:
    """The inputs and outputs of every block in one plain forward, and the model's output."""

    calls: list[Call]
    inputs: list[Tensor]
    outputs: list[Any]
    logits: Tensor

    def given(self, index: int) -> Tensor:
        """Return what the block's output has become where it is used next."""
        own = hidden_of(self.outputs[index])
        return self.inputs[index + 1] if index + 1 < len(self.inputs) else own


@torch.no_grad()
def trace(model: nn.Module, blocks: Mapping[str, nn.Module], sample: Tensor | Sample) -> Trace:
    """Run the model's own forward on token ids (B, T) or a sample; note every block's call.

    Raises:
        UnsupportedModelError: a block did not run exactly once.
    """
    seen: dict[str, list[tuple[Call, Tensor, Any]]] = {name: [] for name in blocks}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            call, hidden = Call.split(args, kwargs)
            seen[name].append((call, hidden.clone(), out))

        return hook

    with ExitStack() as stack:
        for name, block in blocks.items():
            handle = block.register_forward_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        logits = model(**keywords(sample, _device(model))).logits
    for name, runs in seen.items():
        if len(runs) != 1:
            raise UnsupportedModelError(
                f"{name} ran {len(runs)} times in one forward pass, and prunus replays blocks that "
                "run once. This architecture is not handled yet."
            )
    calls, inputs, outputs = zip(*(runs[0] for runs in seen.values()), strict=True)
    return Trace(list(calls), list(inputs), list(outputs), logits)


@torch.no_grad()
def record(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    batches: Iterable[Tensor | Sample],
    traced: Trace,
    hidden: Hidden | None = None,
) -> Recording:
    """Record the calls that ``model`` makes to its blocks for token ids (B, T) or each sample."""
    recording = Recording([] if hidden is None else hidden, [[] for _ in blocks])
    for batch in batches:
        with _recording(list(blocks.values()), recording, traced.outputs):
            try:
                model(**keywords(batch, _device(model)))
            except _LastBlockReached:
                pass
    return recording


def check_replay(
    index: int, name: str, block: nn.Module, recording: Recording, traced: Trace
) -> None:
    """Check that the recorded call, replayed, returns the next block's real input.

    Raises:
        UnsupportedModelError: it differs.
        NumericalError: the block puts out NaN or inf.
    """
    with torch.no_grad():
        replayed = recording.calls[index][0](block, traced.inputs[index]).float()
    expected = traced.given(index).float()
    if not bool(expected.isfinite().all()):
        raise NumericalError(
            f"{name} returns NaN or inf in a plain forward pass. Check the checkpoint, or "
            "load it in a wider dtype (--dtype float32)."
        )
    scale = expected.abs().max().clamp_min(1e-12)
    gap = float((replayed - expected).abs().max() / scale)
    if not gap <= 1e-3:
        raise UnsupportedModelError(
            f"{name}: replaying the block differs from the model's own forward by {gap:.2g} of "
            "its largest output. Its arguments depend on other blocks; this architecture is "
            "not handled yet."
        )


def check_chain(names: Sequence[str], recording: Recording, traced: Trace) -> None:
    """Check that a block's output is the next block's input, except for the model's additions.

    Raises:
        UnsupportedModelError: a model that does something else in between.
    """
    pairs = zip(traced.outputs, traced.inputs[1:], strict=False)
    for index, (output, given) in enumerate(pairs):
        hidden, added = hidden_of(output), recording.calls[index][0].added
        if added is not None and added.shape == hidden.shape:
            hidden = hidden + added
        if hidden.shape != given.shape or not torch.allclose(hidden, given, equal_nan=True):
            raise UnsupportedModelError(
                f"{names[index + 1]} does not receive the output of {names[index]} as it is: the "
                "model changes it in between, which prunus does not replay yet. (RWKV halves it "
                "every six "
                "blocks; with rescale_every set to 0 in config.json it computes the same without "
                "that.)"
            )


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states of a block's output: the output itself or its first element."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(hidden, Tensor):
        raise UnsupportedModelError(f"A block returned {type(hidden).__name__}, not hidden states.")
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Return a block's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return ``tree`` with every tensor replaced; anything but containers stays the same."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple | list) and type(tree) in (tuple, list):
        return type(tree)(map_tensors(value, function) for value in tree)
    return tree


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class _LastBlockReached(Exception):  # noqa: N818 - a signal, not an error; never leaves this file
    pass


@torch.no_grad()
def around(
    model: nn.Module,
    modules: Sequence[nn.Module],
    sample: Tensor | Sample,
    outputs: Sequence[Any],
) -> tuple[Tensor, Tensor]:
    """Return the first block's input, and the logits if block i returns ``outputs[i]``.

    No block runs: it is the embedding, the last norm and the head alone that are tried.
    """
    given: list[Tensor] = []

    def stand_in(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given.append(Call.split(args, kwargs)[1])
            return outputs[index]

        return forward

    with _standing_in(modules, stand_in):
        logits = model(**keywords(sample, _device(model))).logits
    return given[0], logits


@contextmanager
def _recording(
    modules: Sequence[nn.Module], recording: Recording, outputs: Sequence[Any]
) -> Iterator[None]:
    """Let every block note its call and return 0; stop the forward at the last one.

    What the next block is given then is what the model adds in between.
    """

    def stand_in(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call, hidden = Call.split(args, kwargs)
            known = recording.calls[index]
            known.append(_share(call, known[0]) if known else call)
            if index == 0:
                recording.hidden.append(hidden)
            elif bool(hidden.any()):
                before = recording.calls[index - 1]
                before[-1] = replace(before[-1], added=hidden)
            if index == len(modules) - 1:
                raise _LastBlockReached
            return with_hidden(map_tensors(outputs[index], _nonsense), torch.zeros_like(hidden))

        return forward

    with _standing_in(modules, stand_in):
        yield


def _nonsense(tensor: Tensor) -> Tensor:
    """Return NaN of the same shape; 0 for dtypes without NaN."""
    return torch.full_like(tensor, math.nan if tensor.is_floating_point() else 0)


@contextmanager
def _standing_in(
    modules: Sequence[nn.Module], stand_in: Callable[[int], Callable[..., Any]]
) -> Iterator[None]:
    """Replace every block's forward for a while."""
    own = [module.__dict__.get("forward") for module in modules]  # accelerate's hooks put one there
    try:
        for index, module in enumerate(modules):
            module.forward = stand_in(index)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _share(call: Call, first: Call) -> Call:
    """Replace tensors of ``call`` that equal the first sample's by those, to hold them once."""
    args, kwargs = _same(call.args, first.args), _same(call.kwargs, first.kwargs)
    return replace(call, args=args, kwargs=kwargs)


def _same(value: Any, like: Any) -> Any:
    if isinstance(value, Tensor) and isinstance(like, Tensor):
        alike = value.shape == like.shape and value.dtype == like.dtype
        return like if alike and torch.equal(value, like) else value
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: _same(item, like.get(key)) for key, item in value.items()}
    if type(value) in (tuple, list) and type(like) is type(value) and len(value) == len(like):
        return type(value)(_same(a, b) for a, b in zip(value, like, strict=True))
    return value
