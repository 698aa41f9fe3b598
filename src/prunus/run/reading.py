"""The calibration text of a run: its sources, read, sampled, answered, and mixed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import InputError
from ..base.words import number_of
from ..methods.answering import Answering
from ..model.samples import Processed, Samples
from ..recipe import Recipe
from ..report.report import VERSIONS
from ..storage.answered import AnswerJournal
from ..text import Documents, Protocol, read_documents
from ..text.answers import (
    Answer,
    Questioning,
    answer,
    asked_of,
    chat_line,
    check_template,
    ends_of,
    hash_of,
    token_weights,
)
from ..text.bos import first_token
from ..text.given import IDS, TEXTS, Given, Texts
from ..text.mixture import ALONE, Part, counts_of, order_of, parts_of
from ..text.prompts import Prompts, given_prompts, read_prompts
from ..text.sampling import Answered, digest
from ..text.tokens import calibration_tokens, checked, given_samples, needed, window_length
from .job import Text
from .observer import Observer

Journaled = Callable[[Mapping[str, Any], str], AnswerJournal]
"""Opens the journal of answers that this fingerprint decides, for a purpose."""


def unjournaled(fingerprint: Mapping[str, Any], purpose: str) -> AnswerJournal:
    """Keep answers in memory alone."""
    return AnswerJournal()


@dataclass(frozen=True)
class Source:
    """One source of a calibration text, read.

    Attributes:
        part: its name and share.
        text: documents, or prompts to answer; None: the model writes it.
    """

    part: Part
    text: Documents | Prompts | None


@dataclass(frozen=True)
class Piece:
    """The samples of one source.

    Attributes:
        ids: of each sample (T,).
        answered: which of its tokens are an answer's, likewise.
        said: the conversation that it is, as a line of JSON; "" where it is none.
        protocol: what they are.
    """

    ids: list[Tensor]
    answered: list[Tensor]
    said: list[str]
    protocol: Protocol

    @classmethod
    def of_windows(cls, ids_ST: Tensor, protocol: Protocol) -> Piece:
        """Take windows that hold no answer."""
        none = [torch.zeros(len(ids_T), dtype=torch.bool) for ids_T in ids_ST]
        return cls(list(ids_ST), none, [""] * len(none), protocol)


def model_writes(recipe: Recipe) -> bool:
    """Whether the model generates text for calibration, for which it is in memory as a whole."""
    sources = [part.source for part in parts_of(recipe.calibration or "none")]
    return recipe.answers or "self" in sources


def read(recipe: Recipe, tokenizer: Any, given: Given | None, observer: Observer) -> list[Source]:
    """Read the sources of the calibration text; none where there is no text.

    Raises:
        InputError: prompts that cannot be answered; ``--answers`` without any prompts.
        CalibrationError: a source that cannot be read.
    """
    name = recipe.calibration or "none"
    if name in ("none", IDS):
        if recipe.answers:
            raise InputError(
                f"--answers needs prompts, and there are none ({name}). Give a file of them as "
                "--calibration."
            )
        if name == IDS and (recipe.bos, recipe.field) != ("auto", None):
            raise InputError("bos and field are for text; token ids are taken as they are.")
        return []
    first_token(needed(tokenizer), recipe.bos)  # raises where there is none
    if recipe.answers:
        check_template(tokenizer)
    parts = parts_of(name)
    counts_of(parts, recipe.samples)  # raises before anything is read
    found = [_read(part, len(parts) == 1, recipe, tokenizer, given) for part in parts]
    if recipe.answers and not any(isinstance(source.text, Prompts) for source in found):
        raise InputError(
            f"--answers: {name} is text, not prompts. Give a file of prompts: chats, instructions, "
            "questions, or one of them alone with a prompt on each line."
        )
    for source in found:
        lines = [source.text.line()] if isinstance(source.text, Prompts) else []
        lines += source.text.lines() if isinstance(source.text, Documents) else []
        for line in lines:
            observer.say(line)
    return found


def _read(part: Part, alone: bool, recipe: Recipe, tokenizer: Any, given: Given | None) -> Source:
    """Read one source: as prompts where it has some that are to be answered, else as text."""
    if part.source == "self":
        return Source(part, None)
    texts = given if isinstance(given, Texts) and part.source == TEXTS else None
    if recipe.answers and part.source not in ALONE:
        prompts = (
            given_prompts(f"texts given ({texts.kind})", texts.rows, recipe.field)
            if texts is not None
            else read_prompts(part.source, recipe.field)
        )
        if alone or not prompts.plain:
            return Source(part, prompts)
    if texts is not None:
        return Source(part, texts.documents("calibration", recipe.field, tokenizer))
    field = recipe.field if alone or part.source not in ALONE else None
    documents = read_documents(
        part.source, "calibration", recipe.data_dir, field=field, tokenizer=tokenizer
    )
    return Source(part, documents)


@dataclass(frozen=True)
class Reading:
    """What makes samples of sources that were read.

    Attributes:
        model: dense; whole where it writes.
        tokenizer: of the model; None: there is no text.
        observer: told of every step.
        journaled: opens the journal of answers.
    """

    model: PreTrainedModel
    tokenizer: Any
    observer: Observer
    journaled: Journaled = unjournaled

    def tokens(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        given: Given | None,
        purpose: str = "calibration",
    ) -> Text:
        """Return samples and what they are; None where weights alone decide.

        One source of windows gives token ids (S, T). Conversations are samples of their own length.
        """
        if recipe.calibration in (None, "none"):
            return None, None
        if recipe.calibration == IDS:
            return given_samples(given, self.model)
        counts = counts_of([source.part for source in sources], recipe.samples)
        pieces = [
            self._piece(source, recipe, count, purpose)
            for source, count in zip(sources, counts, strict=True)
        ]
        if len(pieces) == 1 and not recipe.answers:
            return torch.stack(pieces[0].ids), pieces[0].protocol
        return self._mixed(recipe, pieces, purpose)

    def _piece(self, source: Source, recipe: Recipe, count: int, purpose: str) -> Piece:
        if isinstance(source.text, Prompts):
            return self._answered(source.text, recipe, count, purpose)
        ids_ST, protocol = calibration_tokens(
            self.model,
            self.tokenizer,
            source.text,
            samples=count,
            length=recipe.length,
            seed=recipe.seed,
            bos=recipe.bos,
            say=self.observer.say,
            purpose=purpose,
        )
        return Piece.of_windows(ids_ST, protocol)

    def _mixed(self, recipe: Recipe, pieces: Sequence[Piece], purpose: str) -> Text:
        """Deal the samples of all sources evenly, and weigh their tokens."""
        order = order_of([len(piece.ids) for piece in pieces])
        ids = [pieces[i].ids[k] for i, k in order]
        answering = recipe.answering()
        share = 0.0 if answering is None else answering.calibration.answers
        answered = [pieces[i].answered[k] for i, k in order]
        protocol = replace(pieces[0].protocol, share=share)
        if len(pieces) > 1:
            protocol = _of_all(recipe, [piece.protocol for piece in pieces], ids, share)
        self.observer.say(f"{purpose}: {protocol}")
        if answering is None and len({len(ids_T) for ids_T in ids}) == 1:
            return torch.stack(ids), protocol
        samples: Samples = Processed(
            tuple({"input_ids": ids_T[None]} for ids_T in ids),
            token_weights(answered, share) if share else None,
            tuple(pieces[i].said[k] for i, k in order),
        )
        return samples, protocol

    def _answered(self, prompts: Prompts, recipe: Recipe, count: int, purpose: str) -> Piece:
        """Put prompts to the model; each conversation is a sample."""
        answering = recipe.answering()
        assert answering is not None  # or they would have been read as text
        most = answering.length
        longest = window_length(self.model, recipe.length) - most
        if longest < 1:
            raise InputError(
                f"--answer-length {most} leaves no room for a prompt in samples of "
                f"{longest + most} tokens. Give a smaller one, or a greater --length."
            )
        asked = asked_of(prompts, self.tokenizer, samples=count, longest=longest, seed=recipe.seed)
        if len(asked.asked) < count:
            self.observer.say(
                f"{prompts.name} has {number_of(len(asked.asked), 'prompt')} that can be answered, "
                f"so that many are used, not {count}"
            )
        facts = self._facts(asked, answering, recipe)
        journal = self.journaled(facts, "" if purpose == "calibration" else f"{purpose}-")
        answers = self._answers(asked, answering, recipe.seed, journal)
        return self._conversations(prompts, recipe, asked, answering, answers)

    def _facts(self, asked: Questioning, answering: Answering, recipe: Recipe) -> dict[str, Any]:
        """All that decides the answers, beside the model's files."""
        return {
            "prompts sha256": asked.sha256,
            "answer length": answering.length,
            "sampling": repr(answering.answers),
            "seed": recipe.seed,
            "end of an answer": ends_of(self.model, self.tokenizer),
            "dtype": str(self.model.dtype),
            "device": str(self.model.device),
            "threads": torch.get_num_threads(),
            **VERSIONS,
        }

    def _answers(
        self, asked: Questioning, answering: Answering, seed: int, journal: AnswerJournal
    ) -> list[Answer]:
        """Return the answers to all prompts: those of the journal, and new ones."""
        total, observer, answers = len(asked.asked), self.observer, []
        asks = number_of(total, "prompt")
        observer.say(f"the model answers {asks} in up to {answering.length} tokens each")
        ends = set(ends_of(self.model, self.tokenizer))
        with journal.kept(observer.say):
            for number, prompt in enumerate(asked.asked):
                observer.block(number, total, f"prompt {number + 1}", "answer")
                if number not in journal.answers:
                    begun = time.perf_counter()
                    ids = answer(
                        self.model, self.tokenizer, prompt, most=answering.length,
                        temperature=answering.answers.temperature, top_p=answering.answers.top_p,
                        seed=seed, number=number,
                    )  # fmt: skip
                    seconds = time.perf_counter() - begun
                    ended = ids[-1] in ends
                    journal.add(number, {"ids": ids, "ended": ended, "seconds": seconds})
                known = journal.answers[number]
                answers.append(Answer(known["ids"], known["ended"], known["seconds"]))
                observer.sample(1, 1)
        return answers

    def _conversations(
        self,
        prompts: Prompts,
        recipe: Recipe,
        asked: Questioning,
        answering: Answering,
        answers: Sequence[Answer],
    ) -> Piece:
        pairs = list(zip(asked.asked, answers, strict=True))
        ids = [torch.tensor([*prompt.ids, *answer.ids]) for prompt, answer in pairs]
        said = [chat_line(prompt, answer, self.tokenizer) for prompt, answer in pairs]
        answered = [torch.arange(len(own_T)) >= len(prompt.ids) for own_T, (prompt, _) in
                    zip(ids, pairs, strict=True)]  # fmt: skip
        for own_T in ids:
            checked(own_T, self.model)
        protocol = Protocol(
            prompts.name,
            len(ids),
            max(map(len, ids)),
            recipe.seed,
            len(prompts.chats),
            len(pairs),
            False,
            hash_of(own_T.tolist() for own_T in ids),
            prompts.field,
            skipped=prompts.skipped,
            answers=_record(asked, answering, answers),
        )
        return Piece(ids, answered, said, protocol)


def _record(asked: Questioning, answering: Answering, answers: Sequence[Answer]) -> Answered:
    """Return how the prompts were answered, for the report."""
    return Answered(
        len(answers),
        sum(len(prompt.ids) for prompt in asked.asked),
        sum(len(answer.ids) for answer in answers),
        sum(answer.ended for answer in answers),
        answering.length,
        answering.answers.temperature,
        answering.answers.top_p,
        asked.longer,
        asked.refused,
        sum(answer.seconds for answer in answers),
    )


def _of_all(
    recipe: Recipe, parts: Sequence[Protocol], ids: Sequence[Tensor], share: float
) -> Protocol:
    """Return the record of a mixture; its hash is that of all samples in their order."""
    alike = len({len(ids_T) for ids_T in ids}) == 1
    return Protocol(
        str(recipe.calibration),
        len(ids),
        max(map(len, ids)),
        recipe.seed,
        sum(part.documents for part in parts),
        sum(part.documents_used for part in parts),
        any(part.concatenated for part in parts),
        digest(torch.stack(list(ids))) if alike else hash_of(ids_T.tolist() for ids_T in ids),
        skipped=sum(part.skipped for part in parts),
        bos=recipe.bos,
        share=share,
        parts=tuple(parts),
    )
