"""What torch itself offers for fewer bytes or steps: CSR weights, and dynamic int8."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base.errors import CheckpointError, InputError, first_line
from ..model.blocks import outputs_first
from ..model.zeros import share_of_zeros
from ..runtime.indexed import index

ZEROS = 0.1  # of a layer without a report, from which on it counts as pruned


class CsrLinear(nn.Module):
    """A linear layer whose weight is a ``torch.sparse`` CSR tensor.

    Indices are int32: MKL takes these as they are, and torch converts int64 at every call. One
    token is a product with a vector, more are one with a matrix.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # CSR is in beta
            csr_OI = weight_OI.to_sparse_csr()
            narrow = csr_OI.crow_indices().int(), csr_OI.col_indices().int()
            csr_OI = torch.sparse_csr_tensor(*narrow, csr_OI.values(), csr_OI.shape)
        self.register_buffer("weight", csr_OI)
        self.register_buffer("bias", bias_O)
        self.out_features, self.in_features = weight_OI.shape

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``X Wᵀ + b`` for inputs (…, I)."""
        inputs_TI = inputs.reshape(-1, self.in_features)
        if len(inputs_TI) == 1:
            outputs_TO = (self.weight @ inputs_TI[0])[None]
        else:
            outputs_TO = (self.weight @ inputs_TI.T).T
        if self.bias is not None:
            outputs_TO = outputs_TO + self.bias
        return outputs_TO.reshape(*inputs.shape[:-1], self.out_features)


@torch.no_grad()
def to_csr(model: PreTrainedModel, names: Collection[str]) -> None:
    """Make CSR of these layers, in place; with no names, of the layers of blocks that have zeros.

    Raises:
        CheckpointError: no such layer, or an expert's matrix among them.
    """
    for name in names or _with_zeros(model):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise CheckpointError(
                f"csr: {name} is an expert's part of one tensor, for which there is no CSR. Leave "
                "csr out."
            ) from None
        csr = CsrLinear(outputs_first(module), module.bias)  # type: ignore[arg-type]
        order_I = getattr(module, "input_order", None)
        if isinstance(order_I, Tensor):  # of --permutation gather
            index(csr, order_I)
        model.set_submodule(name, csr)


def _with_zeros(model: PreTrainedModel) -> list[str]:
    """Name the linear layers of blocks that have zeros."""
    found = [name for name, _, zeros in share_of_zeros(model) if zeros >= ZEROS]
    if not found:
        raise CheckpointError(
            "csr: no layer of this checkpoint has zeros, so as CSR each would only be larger. "
            "Leave csr out."
        )
    return found


def has_dynamic_int8() -> bool:
    """Whether this torch still has dynamic quantisation."""
    try:
        from torch.ao.quantization import quantize_dynamic  # noqa: F401
    except ImportError:
        return False
    return True


@torch.no_grad()
def to_int8(model: nn.Module) -> None:
    """Quantise the linear layers in place: int8 weights, and activations at every call.

    This is ``torch.ao.quantization.quantize_dynamic``, which works in float32. torch calls it
    deprecated in favour of torchao, and torch 2.13 still has it.

    Raises:
        InputError: this torch cannot do it, or not on this processor.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):  # the transpose of what torch quantises
            model.set_submodule(name, _linear(module))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import quantize_dynamic

            quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"int8: torch {torch.__version__} does not quantise here ({first_line(error)})."
        ) from None


def _linear(module: Conv1D) -> nn.Linear:
    weight_OI = outputs_first(module)
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], device="meta")
    linear.weight = nn.Parameter(weight_OI.contiguous(), requires_grad=False)
    linear.bias = module.bias
    return linear
