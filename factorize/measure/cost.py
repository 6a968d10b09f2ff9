"""Parameters and multiply-accumulates of a whole model, and what could not be counted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from factorize.tensor.call import batch_size, call, evaluating

# Of torch's own operators those that do more than a multiplication for each value that they read
# or write, as a convolution or a matrix product does, and that no formula is known for. What torch
# computes by others is seen as those.
_PRODUCTS = frozenset(
    """
    _cdist_forward _euclidean_dist _pdist_forward _trilinear conv_tbc _fft_c2c _fft_c2r _fft_r2c
    addmm_ addmv_ addbmm addbmm_ baddbmm_ _addmm_activation _foreach_mm _grouped_mm
    _int_mm _scaled_grouped_mm _scaled_mm_v2 _weight_int8pack_mm _weight_int4pack_mm
    _mixed_dtypes_linear _dyn_quant_matmul_4bit mkldnn_linear
    _sparse_addmm _sparse_sparse_matmul _sparse_mm_reduce_impl hspmm sparse_sampled_addmm _spsolve
    _cslt_sparse_mm _sparse_semi_structured_mm _sparse_semi_structured_addmm
    _sparse_semi_structured_linear
    _native_multi_head_attention _transformer_encoder_layer_fwd
    _cudnn_rnn miopen_rnn mkldnn_rnn_layer _lstm_mps
    _linalg_det _linalg_slogdet _linalg_eigh _linalg_eigvals _linalg_svd _linalg_solve_ex
    linalg_cholesky_ex linalg_eig linalg_householder_product linalg_inv_ex linalg_ldl_factor_ex
    linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor_ex linalg_lu_solve linalg_matrix_exp
    linalg_qr linalg_solve_triangular triangular_solve cholesky_inverse cholesky_solve
    _cholesky_solve_helper geqrf ormqr
    """.split()  # noqa: SIM905
)
# Of others those that do not: they pick, move or interpolate, which counts as nothing.
_PLAIN = re.compile(
    r"(prims?|c10d|_c10d_functional|profiler)::.*|torchvision::q?(nms|(ps_)?roi_(align|pool))"
)


class Cost(NamedTuple):
    """What a model costs.

    Attributes
    ----------
    params
        Elements of all parameters, each shared one once.
    macs
        Multiply-accumulates per sample.
    uncounted
        Operators that ran, multiply, and are not in `macs`, as no formula is known for them.
    """

    params: int
    macs: int
    uncounted: tuple[str, ...] = ()


def count(model: nn.Module, example_input: Any) -> Cost:
    """Count the parameters and the MACs of a model.

    A MAC is one multiplication and the addition that goes with it. Counted are those of
    convolutions (deformable ones too) and matrix products, attention and recurrent layers
    included, per sample; biases, normalisation, activations, pooling and interpolation count as
    nothing. This is the convention of ``ConvSpec.macs`` and of the figures published with
    torchvision's weights.

    Parameters
    ----------
    model
        Run once, in eval mode; its training flags are as before afterwards. A model and an
        input on the meta device are counted without any arithmetic.
    example_input
        One batch, on the model's device, passed on as `tensor.call.call` does.
    """
    from torch.utils.flop_counter import FlopCounterMode  # which imports Triton where it is there

    params = sum(parameter.numel() for parameter in model.parameters())
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    watch = _Uncounted(counter.flop_registry)  # behind the counter, which takes operators apart
    with evaluating(model), _countable(model), watch, counter:
        call(model, example_input)
    macs = counter.get_total_flops() // 2 // batch_size(example_input)
    return Cost(params, macs, tuple(sorted(watch.names)))


class _Uncounted(TorchDispatchMode):
    """Notes the operators that multiply and for which the counter has no formula."""

    def __init__(self, known: Mapping[Any, Any]) -> None:
        super().__init__()
        self.known = known
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        if func._overloadpacket not in self.known and name not in self.names:
            space, _, short = name.partition("::")
            if space == "aten":
                multiplies = short in _PRODUCTS
            else:
                multiplies = _PLAIN.fullmatch(name) is None and any(
                    isinstance(value, Tensor) and (value.is_floating_point() or value.is_quantized)
                    for value in tree_leaves((args, kwargs))
                )
            if multiplies:
                self.names.add(name)
        return func(*args, **kwargs)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Twice the MACs of operators, from the shapes of what they take and give."""

    def vectors(*shapes: Any, out_shape: Any, **_: Any) -> int:
        return 2 * prod(shapes[0])

    def matrix_vector(start: Any, matrix: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * prod(matrix)

    def deformed(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * prod(out_shape) * prod(weight[1:])  # (N, O, H, W), (O, I/groups, k_h, k_w)

    aten = torch.ops.aten
    found = {aten.mv: vectors, aten.dot: vectors, aten.vdot: vectors, aten.addmv: matrix_vector}
    if loaded := getattr(torch.ops.torchvision, "deform_conv2d", None):
        found[loaded] = deformed
    return found


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Take attention and recurrent layers apart: torch's counter counts a fused one as nothing."""
    mha = torch.backends.mha
    fused = mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="TF32 acceleration")  # flags() sets that too
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(mha.set_fastpath_enabled, fused)
        mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
