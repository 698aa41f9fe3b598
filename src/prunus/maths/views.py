"""The mathematics' view of a model: layers, blocks and units as tensors and names.

``model.blocks`` and ``model.units`` have the real ones, with modules behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

from torch import Tensor

Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "other"]
Kind = Literal["attention", "mlp"]
Unit = Literal["heads", "neurons"]


class LayerView(Protocol):
    """One linear map, seen as ``weight_OI`` whatever its module stores."""

    @property
    def name(self) -> str:
        """The module's full name, such as ``model.layers.0.mlp.up_proj``."""
        ...

    @property
    def block(self) -> int:
        """Index of its block."""
        ...

    @property
    def role(self) -> Role:
        """The layer's purpose; "qkv" and "gate_up" are fused, "up" alone is a plain MLP's first."""
        ...

    @property
    def kind(self) -> Kind:
        """The half of the block that the layer belongs to."""
        ...

    @property
    def site(self) -> str:
        """Name of the first layer that reads the same input."""
        ...

    @property
    def feeds(self) -> str | None:
        """The site whose input the output becomes; None if it goes to the residual stream."""
        ...

    @property
    def parts(self) -> tuple[slice, ...]:
        """The rows of each fused projection; one slice if none are fused."""
        ...

    @property
    def weight_OI(self) -> Tensor:
        """The weight, outputs first."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        ...

    @property
    def bias_O(self) -> Tensor | None:
        """The bias, if there is one."""
        ...


class BlockView(Protocol):
    """One decoder layer as its linear maps."""

    @property
    def name(self) -> str:
        """The module's full name."""
        ...

    @property
    def layers(self) -> Sequence[LayerView]:
        """The linear maps, in the order of the module tree."""
        ...

    @property
    def interior(self) -> frozenset[str]:
        """The sites that other layers of the block feed; the others read the residual stream."""
        ...

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies a gate with an up projection."""
        ...

    def planned(self, plan: Collection[str]) -> Sequence[LayerView]:
        """Return the layers that the plan names."""
        ...

    def showing(self, weights: Mapping[str, Tensor]) -> BlockView:
        """Show other weights (O, I), by layer name; the layer's own are left alone."""
        ...


class UnitsView(Protocol):
    """One depth-2 module cut into units: groups of heads, or neurons."""

    @property
    def unit(self) -> Unit:
        """The kind of the units."""
        ...

    @property
    def block(self) -> int:
        """Index of the block."""
        ...

    @property
    def reader(self) -> LayerView:
        """The second-level layer."""
        ...

    @property
    def columns_UN(self) -> Tensor:
        """The reader's inputs that belong to each unit."""
        ...

    @property
    def sources(self) -> Sequence[tuple[LayerView, Tensor]]:
        """The first-level layers, each with the rows (U, M) of every unit."""
        ...

    @property
    def layers(self) -> Sequence[LayerView]:
        """The first level's layers, then the second level's."""
        ...

    @property
    def units(self) -> int:
        """The number of units."""
        ...

    @property
    def parameters(self) -> int:
        """Parameters of one unit: its rows with their biases, and its columns."""
        ...

    @property
    def heads_per_unit(self) -> int:
        """The number of query heads in a unit."""
        ...

    @property
    def values(self) -> LayerView | None:
        """In attention, the layer that computes the values."""
        ...

    @property
    def value_row_I(self) -> Tensor | None:
        """In attention, the row of ``values`` that each input of the reader is."""
        ...
