"""What to do, as one object: the command line's fields, the YAML beside every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .checkpoint import Dtype
from .errors import InputError, UnknownNameError
from .methods import build_method
from .patterns import NM, check_sparsity, parse_pattern
from .types import BlockPruner


def checked_dtype(name: str) -> Dtype:
    """The dtype of that name, or UnknownNameError."""
    if name not in get_args(Dtype):
        raise UnknownNameError("dtype", name, get_args(Dtype))
    return cast(Dtype, name)


class Recipe(BaseModel):
    """Every choice of a run. ``prunus prune --recipe recipe.yaml`` runs it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="a row of `prunus methods`")
    sparsity: float | None = Field(None, description="fraction to remove; N:M implies its own")
    pattern: str | None = Field(None, description="layer, row, column, N:M; default: the method's")
    settings: dict[str, Any] = Field(default_factory=dict, description="fields of the method")
    update: str | None = Field(None, description="keep, sparsegpt, least-squares")
    mlp_only: bool = Field(False, description="leave attention dense")
    skip_blocks: str | None = Field(None, description="A:B, blocks left dense")
    calibration: str | None = Field(
        None, description="text SOURCE, or none; default: builtin where the method needs text"
    )
    samples: int = Field(128, ge=1, description="calibration windows")
    length: int | None = Field(None, ge=2, description="tokens per window; default up to 2048")
    seed: int = Field(0, ge=0, description="of sampling and generation")
    data_dir: str | None = Field(None, description="where named sources lie as files")
    dtype: Dtype = "auto"
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 …")

    @classmethod
    def of(cls, **fields: Any) -> Recipe:
        """A recipe from keyword arguments.

        Raises:
            InputError: an unknown field, or a value of the wrong kind.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise InputError(f"A recipe has no field {name!r}; it has {known}.") from None
            if first["type"] == "missing":
                raise InputError("No method was given. See `prunus methods` for all.") from None
            raise InputError(f"{name}: {first['msg']}; got {first['input']!r}.") from None

    @classmethod
    def read(cls, path: str | Path, **overrides: Any) -> Recipe:
        """A recipe from a YAML file, some of its fields replaced."""
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"The recipe {path} cannot be read: {error.strerror}.") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise InputError(f"The recipe {path} is not YAML.") from None
        if not isinstance(content, dict):
            raise InputError(f"The recipe {path} must be a mapping of fields, such as method: ria.")
        content.pop("model", None)  # recorded for the reader; the model is always named anew
        return cls.of(**{**content, **overrides})

    def to_yaml(self, model: str) -> str:
        """The file that is written beside the checkpoint."""
        fields = {"model": model, **self.model_dump(exclude_none=True)}
        return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)

    def build(self) -> tuple[BlockPruner, float]:
        """The pruner and its sparsity; an N:M pattern brings its own, otherwise one half."""
        pattern = parse_pattern(self.pattern) if self.pattern is not None else None
        sparsity = self.sparsity
        if sparsity is None:
            sparsity = pattern.sparsity if isinstance(pattern, NM) else 0.5
        check_sparsity(sparsity)
        return build_method(self.method, pattern, self.settings, self.update), sparsity
