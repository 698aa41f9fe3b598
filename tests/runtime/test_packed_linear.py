"""Products with packed layers equal torch's, with every set of kernels that runs here and none."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from prunus.base.errors import CheckpointWarning, InputError
from prunus.maths.packed import Values, pack
from prunus.runtime import products
from prunus.runtime.kernels import Library
from prunus.runtime.kernels.library import FILE, MOST, SETS
from prunus.runtime.kernels.library import library as choose
from prunus.runtime.packed_linear import PackedLinear

KINDS = ["float32", "bfloat16", "float16", "int8", "int4"]
SHAPES = [(1, 1), (8, 32), (17, 100), (40, 257), (3, 1030), (600, 64)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def available():
    found = []
    for name in SETS if FILE.exists() else ():
        try:
            found.append(Library(FILE, name))
        except InputError:
            pass  # not of this processor
    return found


LIBRARIES = [*available(), None]


@pytest.fixture(params=LIBRARIES, ids=lambda x: x.name if x else "none")
def kernels(request, monkeypatch):
    monkeypatch.setattr(products, "library", lambda: request.param)
    return request.param


def layer(shape, zeros=0.5, bias=True, seed=0):
    outputs, inputs = shape
    torch.manual_seed(seed)
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight *= torch.rand_like(made.weight) >= zeros
    return made


@pytest.mark.filterwarnings("ignore:prunus was installed without")
@pytest.mark.parametrize("zeros", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_products_equal_those_of_the_dense_weight(kernels, kind, shape, zeros):
    dense = layer(shape, zeros, bias=zeros == 0.5)
    packed = PackedLinear.of(dense, Values.of(kind))
    weight = packed.packed.dense().double()
    for rows in (0, 1, 2, 3, 5, 16, 17, 40):
        for dtype, close in TOLERANCE.items():
            x = torch.randn(rows, shape[1]).to(dtype)
            bias = None if dense.bias is None else dense.bias.to(dtype).double()
            found, expected = packed(x), linear(x.double(), weight, bias)
            assert found.dtype == dtype
            assert found.shape == expected.shape
            size = expected.abs().max() if rows else 0
            step = 1e-4 * x.abs().max() if kind.startswith("int") and 0 < rows <= MOST else 0
            assert torch.allclose(found.double(), expected, atol=float(close * size + step))


@pytest.mark.filterwarnings("ignore:prunus was installed without")
@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("rows", [1, 4, 30])
@torch.no_grad()
def test_nan_and_inf_go_where_torch_puts_them(kernels, kind, rows):
    dense = layer((24, 96), bias=False)
    dense.weight[3, :7] = torch.tensor([math.nan, 0, 1, 0, 2, 0, 3])
    dense.weight[9, 40] = math.inf
    x = torch.randn(rows, 96)
    x[0, 60] = math.inf
    dense = dense.to(getattr(torch, kind))
    found = PackedLinear.of(dense, Values.of(kind))(x)
    expected = linear(x, dense.weight.float())
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())


@pytest.mark.filterwarnings("ignore:prunus was installed without")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@torch.no_grad()
def test_integers_do_not_hide_inputs_that_are_not_finite(kernels, bad):
    packed = PackedLinear.of(layer((24, 96)), Values.of("int8"))
    x = torch.randn(1, 96)
    x[0, 40] = bad
    assert not packed(x).isfinite().any()


@torch.no_grad()
def test_inputs_far_apart_in_size_keep_their_digits(kernels):
    """One input of 1000 must not round the others of its row away, as one 8-bit scale would."""
    if kernels is None:
        pytest.skip("without kernels nothing is rounded")
    packed = PackedLinear.of(layer((64, 512), bias=False), Values("int8", 128))
    x = torch.randn(1, 512)
    x[0, 3] = 1000
    expected = linear(x.double(), packed.packed.dense().double())
    assert (packed(x) - expected).norm() / expected.norm() < 1e-4
    x[0, 3], x[0, 4] = 1e-35, 1e-38  # and a span of next to nothing is nothing
    assert packed(x).isfinite().all()


def test_a_view_that_is_not_contiguous(kernels):
    dense = layer((24, 96))
    packed = PackedLinear.of(dense, Values.of("float32"))
    x = torch.randn(96, 3, 2).permute(2, 1, 0)
    with torch.no_grad():
        assert torch.allclose(packed(x), dense(x), atol=1e-5)
        assert torch.allclose(packed(x[0, 0]), dense(x[0, 0]), atol=1e-5)


@torch.no_grad()
def test_a_conv1d_becomes_the_same_function():
    dense = Conv1D(24, 96)
    dense.weight *= torch.rand_like(dense.weight) > 0.5
    x = torch.randn(2, 5, 96)
    assert torch.allclose(PackedLinear.of(dense, Values.of("float32"))(x), dense(x), atol=1e-5)


@torch.no_grad()
def test_threads_change_no_bit():
    dense = layer((2000, 512))
    before, results = torch.get_num_threads(), []
    for kind in KINDS:
        packed, x = PackedLinear.of(dense, Values.of(kind)), torch.randn(2, 512)
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(torch.cat((packed(x), packed(x[:1]))))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[-1], results[-2])
        assert torch.equal(results[-1], results[-3])


def test_copies_conversions_and_meta():
    dense = layer((24, 96))
    packed = PackedLinear.of(dense, Values.of("bfloat16"))
    x = torch.randn(3, 96)
    with torch.no_grad():
        twin = copy.deepcopy(packed)
        packed.packed_values.zero_()
        assert torch.allclose(twin(x), dense(x), atol=0.02)
        half = twin.half()
        assert (half.packed_values.dtype, half.bias.dtype) == (torch.bfloat16, torch.float16)
        assert half.weight.dtype == torch.float16
        assert half(x.half()).dtype == torch.float16
    assert twin.to("meta")(x.to("meta")).shape == (3, 24)
    assert "in_features=96, out_features=24, bias=True, bfloat16" in repr(packed)


def test_a_state_dict_carries_the_layer_over():
    packed = PackedLinear.of(layer((24, 96)), Values.of("int4"))
    other = PackedLinear.of(layer((24, 96), seed=1), Values.of("int4"))
    state = packed.state_dict()
    assert set(state) == {
        "bias", "packed_masks", "packed_values", "packed_offsets", "packed_levels", "packed_scales"
    }  # fmt: skip
    other.packed_values = torch.empty_like(packed.packed_values)
    other.load_state_dict(state)
    x = torch.randn(1, 96)
    with torch.no_grad():
        assert torch.equal(other(x), packed(x))


def test_gradients_are_those_of_the_dense_weight():
    dense = layer((24, 96))
    x = torch.randn(3, 96, requires_grad=True)
    packed = PackedLinear.of(dense, Values.of("float32"))
    (packed(x) ** 2).sum().backward()
    found, x.grad = x.grad, None
    (dense(x) ** 2).sum().backward()
    assert torch.allclose(found, x.grad, atol=1e-5)


@torch.no_grad()
def test_torch_compile_takes_it_as_one_operator():
    packed = PackedLinear.of(layer((24, 96)), Values.of("bfloat16"))
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(packed, backend=backend, fullgraph=True, dynamic=True)
    for rows in (1, 3, 20):
        x = torch.randn(rows, 96)
        assert torch.equal(compiled(x), packed(x))
    assert "prunus.packed_linear" in graphs[0]


def test_the_operator_passes_torchs_own_checks():
    packed = pack(layer((24, 96)).weight.detach(), Values.of("int4"))
    x, bias = torch.randn(3, 96), torch.randn(24)
    tensors = packed.masks_GWR, packed.values_V, packed.offsets_G, packed.levels_L
    arguments = (x, *tensors, packed.scales_GSR, bias, "int4", packed.values.group, 24, 96)
    torch.library.opcheck(
        torch.ops.prunus.packed_linear,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_an_input_of_another_width_is_refused(kernels):
    if kernels is None:
        pytest.skip("torch refuses it")
    with torch.no_grad(), pytest.raises(InputError, match=r"takes 96 inputs; got \(3, 95\)"):
        PackedLinear.of(layer((24, 96)), Values.of("int8"))(torch.randn(3, 95))


def test_without_kernels_it_says_so_once(monkeypatch):
    monkeypatch.setattr(products, "library", lambda: None)
    products._say_once.cache_clear()
    packed = PackedLinear.of(layer((24, 96)), Values.of("int8"))
    with torch.no_grad():
        with pytest.warns(CheckpointWarning, match="Install a C compiler"):
            packed(torch.randn(1, 96))
        packed(torch.randn(1, 96))  # a second warning would be an error


def test_kernels_are_chosen_by_an_environment_variable(monkeypatch):
    monkeypatch.setenv("PRUNUS_KERNELS", "none")
    assert choose.__wrapped__() is None
    monkeypatch.setenv("PRUNUS_KERNELS", "sse9")
    with pytest.raises(InputError, match="is avx512, avx2, neon, portable or none; got sse9"):
        choose.__wrapped__()
    for kernels in available():
        monkeypatch.setenv("PRUNUS_KERNELS", kernels.name)
        assert choose.__wrapped__().name == kernels.name
    absent = [name for name in SETS if name not in [x.name for x in available()]]
    monkeypatch.setenv("PRUNUS_KERNELS", absent[0])
    with pytest.raises(InputError, match=r"do not run here|installed without its kernels"):
        choose.__wrapped__()
