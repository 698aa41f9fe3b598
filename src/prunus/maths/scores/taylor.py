"""The change of the loss if a unit were removed, by its Taylor series around the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...base.errors import InputError, MissingStatisticError
from ..contracts import Needs
from ..views import LayerView, UnitsView
from .units import Gathered, over_units

ORDERS = ("first", "second", "mixed")


@dataclass(frozen=True)
class Taylor:
    """``Σ |first − second|`` over the unit: the terms of ``L(w) − L(0) = gᵀw − ½ wᵀHw``.

    ``by="element"``: one term for each weight; ``"vector"``: for each row of the first level, each
    column of the second. ``order`` says which of them count:

    - ``"first"``: ``w · g``, with g the gradient of the loss; of a vector their sum.
    - ``"second"``: ``wᵀHw`` alone, with Fisher's ``H = mean_j g_j g_jᵀ`` of single samples: of an
      element ``w² · mean_j g_j²``, of a vector ``mean_j (Σ w · g_j)²``.
    - ``"mixed"``: ``w · g − ½ wᵀHw``.

    What differs from the authors' code: of a vector it has the first order alone. (The diagonal of
    H, which it uses for elements, would give a vector what its elements have.)

    Reference: Ma et al. 2023 (NeurIPS), LLM-Pruner, arXiv:2305.11627, equations 3 and 5; their
    ``vectorize``, ``param_first``, ``param_second`` and ``param_mix``.
    """

    by: str = "element"
    order: str = "first"

    first: ClassVar[Needs] = ()
    second: ClassVar[Needs] = ()
    wants: ClassVar[Literal["gradients"]] = "gradients"
    comparable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.by not in ("element", "vector"):
            raise InputError(f"by is element or vector; got {self.by!r}.")
        if self.order not in ORDERS:
            raise InputError(f"order is first, second or mixed; got {self.order!r}.")

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor:
        return over_units(
            module, {layer.name: self._change(module, layer, gathered) for layer in module.layers}
        )

    def _change(self, module: UnitsView, layer: LayerView, gathered: Gathered) -> Tensor:
        """Return the size of each term: (O, I), or of vectors (O, 1), for the reader (1, I)."""
        if self.order == "first":
            return self._first(module, layer, gathered).abs()
        second = self._second(module, layer, gathered)
        if self.order == "second":
            return second
        return (self._first(module, layer, gathered) - second / 2).abs()

    def _first(self, module: UnitsView, layer: LayerView, gathered: Gathered) -> Tensor:
        if gathered.gradients is None:
            raise MissingStatisticError("Gradients were not computed; this score reads them.")
        change_OI = layer.weight_OI.float() * gathered.gradients[layer.name].float()
        if self.by == "element":
            return change_OI
        return change_OI.sum(0 if layer is module.reader else 1, keepdim=True)

    def _second(self, module: UnitsView, layer: LayerView, gathered: Gathered) -> Tensor:
        if gathered.curvatures is None:
            raise MissingStatisticError(
                "Gradients of single samples were not computed; this score reads them."
            )
        found = gathered.curvatures[layer.name]
        if self.by == "element":
            return layer.weight_OI.float().square() * found.squares_OI
        if layer is module.reader:
            return found.columns_I[None]
        return found.rows_O[:, None]
