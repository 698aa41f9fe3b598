"""What to do, as one object: the command line's fields, the YAML beside every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from .base.arguments import block_range
from .base.device import Dtype
from .base.errors import InputError
from .base.yaml import read_mapping
from .maths.grids import Grid
from .maths.patterns import NM, check_sparsity, parse_pattern
from .maths.pruners.units import DEFAULT
from .maths.reconstruction import Reconstruction
from .maths.shares import Uniform, learner_of
from .methods.answering import PARTS as OF_TEXT
from .methods.answering import Answering, of_text
from .methods.build import (
    Composition,
    build_allocation,
    build_method,
    build_reconstruction,
    build_units,
    updates_itself,
)
from .methods.own import spelled
from .methods.presets import is_one, of_preset
from .methods.table import QUANTIZE, STRUCTURED, Method
from .methods.words import complaint, in_words

WEIGHTS_ONLY = (
    *("pattern", "update", "refine", "reconstruct", "permutation", "search", "true_sequential"),
    *("bits", "group", "quantize", "pack", "min_tokens", "statistics"),
)
RECOVERY_TEXT = ("recovery_text", "recovery_samples")
STRUCTURED_ONLY = ("blocks", "parameters", "recovery", *RECOVERY_TEXT)
PARTS = {name: f"{name}." for name in ("permutation", "allocation", "update", "reconstruct")}
PARTS["refine"] = "refinement."  # how settings of what a field names begin

OWN = """# The method is an object of Python, which this file cannot hold. Give it again:
# prunus.prune(model, "recipe.yaml", method=…). It was
# {}
"""


class Recipe(BaseModel):
    """Every choice of a run. ``prunus prune --recipe recipe.yaml`` runs it again."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: str = Field(description="a row of `prunus methods`")
    sparsity: float | None = Field(None, description="fraction to remove; N:M implies its own")
    pattern: str | None = Field(None, description="layer, row, column, N:M; default: the method's")
    settings: dict[str, Any] = Field(default_factory=dict, description="fields of the method")
    update: str | None = Field(None, description="keep, sparsegpt, least-squares")
    refine: str | None = Field(None, description="none, swaps")
    reconstruct: str | None = Field(None, description="none, block, half")
    permutation: str | None = Field(None, description="none, fold, gather, free")
    search: str | None = Field(None, description="assignment, paper, heuristic, greedy")
    allocation: str | None = Field(
        None, description="uniform, owl, besa, slope, evolve, slope+besa …; adaptive (heads)"
    )
    bits: int | None = Field(None, description="2 to 8: put what is kept on an integer grid")
    group: int | None = Field(None, description="inputs that share a grid, default 128; 0: a row")
    quantize: Literal["before", "after"] | None = Field(
        None, description="whether the grid comes before the mask; default after"
    )
    pack: bool = Field(False, description="write integers, not the numbers they stand for")
    true_sequential: bool = Field(False, description="statistics anew after each site")
    statistics: Literal["pruned", "dense"] | None = Field(
        None, description="of a block behind pruned blocks, or behind dense ones; default pruned"
    )
    min_tokens: int | None = Field(
        None, ge=0, description="an expert with fewer is pruned by its weights alone"
    )
    mlp_only: bool = Field(False, description="leave attention dense")
    skip_blocks: str | None = Field(None, description="A:B, blocks left dense")
    blocks: str | None = Field(None, description="A:B, blocks to prune; structured methods")
    parameters: int | None = Field(None, description="how many to remove; structured methods")
    recovery: str | None = Field(None, description="none, before, after, both; structured methods")
    recovery_text: str | None = Field(
        None, description="text SOURCE of recovery; default: the calibration text"
    )
    recovery_samples: int | None = Field(
        None, ge=2, description="windows of recovery; default: as many as of calibration"
    )
    calibration: str | None = Field(
        None, description="text SOURCE, or none; default: builtin where the method needs text"
    )
    answers: bool = Field(False, description="the model answers the prompts of calibration")
    answer_length: int | None = Field(
        None, ge=1, description="tokens of an answer at most; default 256"
    )
    samples: int = Field(128, ge=1, description="calibration windows")
    length: int | None = Field(None, ge=2, description="tokens per window; default up to 2048")
    seed: int = Field(0, ge=0, lt=2**63, description="of sampling and generation")
    data_dir: str | None = Field(None, description="where named sources lie as files")
    field: str | None = Field(None, description="the field of the text's rows; default: by name")
    bos: Literal["auto", "yes", "no"] = Field(
        "auto", description="the beginning-of-text token, in every window or in none"
    )
    dtype: Dtype = "auto"
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 …")
    _row: Method | None = PrivateAttr(None)  # of a method that is an object, which no YAML holds

    @field_validator("bos", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """YAML reads an unquoted yes or no as true or false."""
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

    @classmethod
    def of(cls, **fields: Any) -> Recipe:
        """Make a recipe from keyword arguments; the method may be an object (see ``own``).

        ``preset`` stands for other fields (``methods.presets``), and each of those may be given
        beside it.

        Raises:
            InputError: an unknown field, or a value of the wrong kind.
        """
        preset = fields.pop("preset", None)
        if preset is not None:
            return cls.of(**of_preset(str(preset), fields.get("pattern"))).replaced(**fields)
        fields, row = in_words(fields)
        try:
            recipe = cls(**fields)
            recipe._row = row
            return recipe
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise InputError(f"A recipe has no field {name!r}; it has {known}.") from None
            if first["type"] == "missing":
                raise InputError("No method was given. See `prunus methods` for all.") from None
            said = {key: info.description for key, info in cls.model_fields.items()}
            raise InputError(complaint(error, said)) from None

    @classmethod
    def read(cls, path: str | Path, **overrides: Any) -> Recipe:
        """Read a recipe from a YAML file, and replace some of its fields."""
        content = read_mapping(path, "recipe", "method: ria")
        content.pop("model", None)  # recorded for the reader; the model is always named anew
        return cls.of(**content).replaced(**overrides)

    def replaced(self, **fields: Any) -> Recipe:
        """Return the same recipe with some fields replaced.

        Settings are merged. What a new field leaves without a meaning goes: a sparsity beside a new
        N:M or a new number of parameters, settings of a part that another takes the place of, an
        update beside a method that has its own, and with a method of another kind all that is for
        the old one's kind alone.
        """
        preset = fields.pop("preset", None)
        if preset is not None:
            own = of_preset(str(preset), fields.get("pattern", self.pattern))
            return self.replaced(**own).replaced(**fields)
        old = self.model_dump(exclude_unset=True)
        fields, row = in_words(fields)
        row = row if "method" in fields else self._row
        gone, parts = self._orphaned(fields, row)
        settings = {
            key: value
            for key, value in old.pop("settings", {}).items()
            if not key.startswith(tuple(parts))
        } | fields.pop("settings", {})
        kept = {key: value for key, value in old.items() if key not in gone}
        new = Recipe.of(**{**kept, **fields, **({"settings": settings} if settings else {})})
        new._row = row
        return new

    def _orphaned(self, fields: dict[str, Any], row: Method | None) -> tuple[set[str], list[str]]:
        """Return the fields that new ones leave without a meaning, and how such settings begin."""
        changed = {key for key, value in fields.items() if value != getattr(self, key, None)}
        gone: set[str] = set()
        if is_one(str(fields.get("pattern"))) or "parameters" in fields:
            gone.add("sparsity")
        if "sparsity" in fields:
            gone.add("parameters")
        if fields.get("permutation") == "none":
            gone.add("search")
        parts = [part for field, part in PARTS.items() if field in changed]
        if fields.get("answers") is False:
            parts += OF_TEXT
            gone.add("answer_length")
        method = fields["method"] if "method" in changed else None
        if method and self.allocation is None:
            parts.append(PARTS["allocation"])  # the old method's own
        if method and updates_itself(method, row):
            gone.add("update")
        if method and (method in STRUCTURED) != self.structured:
            gone |= {*STRUCTURED_ONLY, *WEIGHTS_ONLY, "allocation", "sparsity"}
            parts = [""]  # all of them
        return gone, parts

    def to_yaml(self, model: str) -> str:
        """Return the text of the file that is written beside the checkpoint."""
        fields = {"model": model, **self.model_dump(exclude_none=True)}
        if is_one(str(self.pattern)):
            fields.pop("sparsity", None)  # N:M says it
        text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
        return text if self._row is None else OWN.format(spelled(self.build().weights)) + text

    def build(self) -> Composition:
        """Return the pruner, its allocation, and how much is removed in all.

        An N:M pattern brings its own sparsity, otherwise it is one half. (``quantize`` removes
        nothing unless a pattern says what is 0 already.) Heads and neurons lose a fifth.
        """
        self.answering()
        return self._of_units() if self.structured else self._of_weights()

    def answering(self) -> Answering | None:
        """Return how prompts are answered; None where they are not.

        Raises:
            InputError: settings of answers without answers, or that cannot be.
        """
        settings = of_text(self.settings)
        if not self.answers:
            given = [f"--set {name}" for name in settings]
            given += ["--answer-length"] if self.answer_length is not None else []
            if given:
                raise InputError(f"{given[0]} is for a run with --answers.")
            return None
        found = Answering.of(self.answer_length, settings)
        if self.structured and found.calibration.answers:
            raise InputError(
                f"{self.method} removes heads and neurons, whose statistics let every token count "
                "alike. Leave --set calibration.answers out."
            )
        return found

    @property
    def of_method(self) -> dict[str, Any]:
        """The settings, without those of answers."""
        return {k: v for k, v in self.settings.items() if k not in of_text(self.settings)}

    def _of_weights(self) -> Composition:
        self._refuse(STRUCTURED_ONLY, f"{self.method} removes single weights, not heads or neurons")
        if self.skip_blocks is not None:
            block_range("--skip-blocks", self.skip_blocks)  # before the model is loaded
        pattern = parse_pattern(self.pattern) if self.pattern is not None else None
        sparsity = self.sparsity
        if sparsity is None:
            default = 0.0 if self.method == QUANTIZE else 0.5
            sparsity = pattern.sparsity if isinstance(pattern, NM) else default
        check_sparsity(sparsity)
        budget = {k: v for k, v in self.of_method.items() if k.startswith("allocation.")}
        own = {k: v for k, v in self.of_method.items() if k.startswith("reconstruct.")}
        if self.pack and self.true_sequential and self.permutation in ("fold", "gather"):
            raise InputError(
                "--pack with --true-sequential cannot have --permutation: a later layer's order "
                "moves rows of an earlier one, which is packed by then. Leave one of them out."
            )
        pruner = build_method(
            self.method,
            pattern,
            {k: v for k, v in self.of_method.items() if k not in {**budget, **own}},
            self.update,
            self.refine,
            self.permutation,
            self.search,
            self.grid(),
            self.quantize,
            self.pack,
            self._row,
        )
        grid = self.grid() if self.quantize == "before" else None
        allocation = build_allocation(self.method, pruner, self.allocation, budget, grid, self._row)
        if self.statistics == "dense" and (self.true_sequential or learner_of(allocation)):
            what = "--true-sequential" if self.true_sequential else "An allocation that learns"
            raise InputError(
                f"{what} reads outputs of what has been pruned already, so --statistics dense does "
                "not apply. Give --statistics pruned."
            )
        return Composition(pruner, allocation, sparsity, self._reconstruction(own))

    def _reconstruction(self, settings: dict[str, Any]) -> Reconstruction | None:
        """Build the reconstruction; raise InputError for what does not go together with it."""
        found = build_reconstruction(self.reconstruct, settings)
        if found is None:
            return None
        if self.bits is not None:
            raise InputError(
                "--reconstruct gives kept weights new values, which would be off the grid of "
                "--bits. Leave --bits out, and use prunus quantize on the pruned model."
            )
        if self.statistics == "dense":
            raise InputError(
                "--reconstruct reads outputs of what has been pruned already, so --statistics "
                "dense does not apply. Give --statistics pruned."
            )
        if self.true_sequential and self.permutation in ("fold", "gather"):
            raise InputError(
                "--reconstruct with --true-sequential cannot have --permutation: a later layer's "
                "order moves rows of an earlier one, whose error is then not known any more. "
                "Leave one of them out."
            )
        return found

    def grid(self) -> Grid | None:
        """Return the integer grid of the kept weights, where there is one."""
        if self.bits is None:
            given = {"group": self.group, "quantize": self.quantize, "pack": self.pack or None}
            for name, value in given.items():
                if value is not None:
                    raise InputError(f"--{name} is for a run with --bits, such as --bits 4.")
            return None
        group = 128 if self.group is None else self.group
        return Grid(self.bits, group or None)

    @property
    def structured(self) -> bool:
        """Whether the method removes whole heads and neurons."""
        return self.method in STRUCTURED

    def _of_units(self) -> Composition:
        whole = f"{self.method} removes whole heads and neurons"
        self._refuse(WEIGHTS_ONLY, whole)
        self._refuse(("skip_blocks",), f"{whole}, in the blocks that blocks=A:B names")
        if self.blocks is not None:
            block_range("--blocks", self.blocks)
        if self.sparsity is not None and self.parameters is not None:
            raise InputError("sparsity and parameters both say how much goes: give one of them.")
        sparsity = DEFAULT if self.sparsity is None else self.sparsity
        if not 0 < sparsity < 1:
            raise InputError(
                f"sparsity {sparsity} would leave nothing, or all; {whole}: give a share between "
                "0 and 1."
            )
        text = self.calibration != "none"
        pruner = build_units(
            self.method, self.of_method, self.allocation, self.recovery, self.mlp_only, text
        )
        for name in RECOVERY_TEXT:
            if getattr(self, name) is not None and pruner.recovery == "none":
                option = name.replace("_", "-")
                raise InputError(f"--{option} is for a run with --recovery before, after or both.")
        return Composition(pruner, Uniform(), sparsity)

    def text_of_recovery(self) -> Recipe | None:
        """Return the recipe whose calibration text is that of recovery; None: it is the same."""
        if self.recovery_text is None and self.recovery_samples is None:
            return None
        changes: dict[str, Any] = {"samples": self.recovery_samples or self.samples}
        if self.recovery_text is not None:
            changes |= {"calibration": self.recovery_text, "field": None, "answers": False}
            changes |= {"answer_length": None, "settings": self.of_method}
        return self.model_copy(update=changes)

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) is not False:
                option = name.replace("_", "-")
                raise InputError(f"{why}, so --{option} does not apply. Leave it out.")
