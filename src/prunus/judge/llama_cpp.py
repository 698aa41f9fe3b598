"""llama.cpp as a model to measure, through the functions of ``llama-cpp-python``."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
import torch

from ..base.errors import CheckpointError
from .resident import forget_peak, peak_bytes, rest_bytes

PIECE = 256  # its contexts are multiples of this


class LlamaCpp:
    """A GGUF that llama.cpp holds; each run has a context of its own, as large as it needs."""

    def __init__(self, path: str, threads: int | None) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        if threads is not None:
            torch.set_num_threads(threads)
        self._threads = torch.get_num_threads()
        self._api.llama_backend_init()
        settings = self._api.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(path.encode(), settings)
        if not self._model:
            raise CheckpointError("llama.cpp cannot load this file.")
        self._vocabulary = self._api.llama_model_get_vocab(self._model)

    def facts(self) -> dict[str, Any]:
        """Return what the parent must know of the model."""
        self.run([[0]], 2)  # so that what is mapped is there
        return {
            "parameters": self._api.llama_model_n_params(self._model),
            "weight_bytes": self._api.llama_model_size(self._model),
            "read": None,
            "rest": rest_bytes(),
            "vocabulary": self._api.llama_vocab_n_tokens(self._vocabulary),
            "context": self._api.llama_model_n_ctx_train(self._model),
            "dtype": self._kind(),
            "device": "cpu",
            "threads": self._threads,
            "kernels": None,
        }

    def run(self, ids: list[list[int]], new: int) -> dict[str, float]:
        """Time the prompts in one call, and ``new − 1`` greedy steps of all rows, in seconds."""
        context = self._context(len(ids), len(ids[0]), new)
        batch = self._api.llama_batch_init(len(ids) * len(ids[0]), 0, 1)
        try:
            forget_peak()
            begun = time.perf_counter()
            next_B = self._step(context, batch, ids, 0)
            prefilled = time.perf_counter()
            for place in range(len(ids[0]), len(ids[0]) + new - 1):
                next_B = self._step(context, batch, [[token] for token in next_B], place)
            done = time.perf_counter()
            peak = peak_bytes()
        finally:
            self._api.llama_batch_free(batch)
            self._api.llama_free(context)
        return {"prefill": prefilled - begun, "decode": done - prefilled, "peak": peak}

    def _context(self, rows: int, length: int, new: int) -> Any:
        settings = self._api.llama_context_default_params()
        settings.n_ctx = rows * -(-(length + new) // PIECE) * PIECE
        settings.n_batch = rows * length
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = self._threads
        context = self._api.llama_init_from_model(self._model, settings)
        if not context:
            raise CheckpointError(f"llama.cpp makes no context for {rows} × {length + new} tokens.")
        return context

    def _step(self, context: Any, batch: Any, ids: list[list[int]], place: int) -> list[int]:
        """Read new tokens of every row, from this place on, and return the likeliest next ones."""
        batch.n_tokens, last = 0, []
        for row, tokens in enumerate(ids):
            for offset, token in enumerate(tokens):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, place + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = offset == len(tokens) - 1
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        if self._api.llama_decode(context, batch) != 0:
            raise CheckpointError("llama.cpp cannot compute this batch.")
        size = self._api.llama_vocab_n_tokens(self._vocabulary)
        rows_BV = [self._api.llama_get_logits_ith(context, at) for at in last]
        return [int(np.argmax(np.ctypeslib.as_array(row, shape=(size,)))) for row in rows_BV]

    def _kind(self) -> str:
        """Return what its weights are stored as, such as ``Q4_K - Medium``."""
        text = ctypes.create_string_buffer(128)
        self._api.llama_model_desc(self._model, text, len(text))
        return " ".join(text.value.decode().split()[2:]) or "GGUF"  # after family and size
