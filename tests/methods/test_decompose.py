"""`factorize.decompose`: one kernel, every registered method, and tensorly's own objects."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod, sqrt

import numpy as np
import pytest
import tensorly
import torch
from norms import covariance, random
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d, linear

from factorize import Decomposition, decompose, methods
from factorize.errors import DataError, FactorizeError, RankError, UnsupportedLayerError
from factorize.methods.chain import chain_kernel
from factorize.spec import ConvSpec
from factorize.tensor.moments import Moments

SHAPES = ((7, 6), (7, 6, 5), (7, 6, 3, 2), (6, 8, 1, 1), (4, 3, 2, 3, 2))


def spec_of(shape: tuple[int, ...]) -> ConvSpec:
    ones = (1,) * (len(shape) - 2)
    kind = f"conv{len(ones)}d" if ones else "linear"
    return ConvSpec("", kind, shape[1], shape[0], shape[2:], ones, ones, ones)


CASES = [
    (name, shape)
    for name in methods.names()
    for shape in SHAPES
    if not methods.get(name).supports(spec_of(shape))
]
every_case = pytest.mark.parametrize("method, shape", CASES)


def moments_of(shape: tuple[int, ...], *, separable: bool = False) -> Moments:
    size = prod(shape[1:])
    second = (covariance(size),)
    if separable:
        second = covariance(shape[1]), covariance(prod(shape[2:]), 1)
    return Moments(second, torch.zeros(size), 100, 10)


def a_third(method: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-top // 3) for top in methods.get(method).max_rank(spec_of(shape)))


def cheap(method: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The largest of twenty ranks that takes at most 0.6 of the parameters; or else the least.

    Nearer to the exact form there is nothing to win but digits, which follow from the start.
    """
    chosen, spec = methods.get(method), spec_of(shape)
    limit = chosen.max_rank(spec)
    ranks = [tuple(-(-share * top // 20) for top in limit) for share in range(20, 0, -1)]

    def cost(rank: tuple[int, ...]) -> int:
        stages = chosen.stages(spec, rank, chosen.variants[0])
        return sum(prod(one.kernel_shape) for one in stages)

    return next((rank for rank in ranks if cost(rank) <= 0.6 * prod(shape)), ranks[-1])


def in_outputs(kernel: Tensor, second: Tensor) -> float:
    """The root mean square of a kernel's output, by brute force."""
    rows = kernel.flatten(1)
    return sqrt(float((rows @ second @ rows.T).trace()))


def refusal(kind: type[FactorizeError], *args: object, **options: object) -> str:
    with pytest.raises(kind) as caught:
        decompose(*args, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("kernel: ")
    assert message.endswith((".", "?"))
    return message


@every_case
def test_reported_error_is_the_measured_one(method: str, shape: tuple[int, ...]) -> None:
    kernel = random(*shape)
    made = decompose(kernel, method, a_third(method, shape))
    assert torch.equal(made.kernel, chain_kernel(made.stages, made.factors))
    assert [f.shape for f in made.factors] == [s.kernel_shape for s in made.stages]
    assert made.kernel.shape == kernel.shape
    measured = float((kernel - made.kernel).norm() / kernel.norm())
    assert made.error == pytest.approx(measured, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_weights_of_the_chain(shape: tuple[int, ...]) -> None:
    """torch itself, stage after stage, gives what the composed kernel gives."""
    apply = {2: linear, 3: conv1d, 4: conv2d, 5: conv3d}[len(shape)]
    x = random(2, shape[1], *(k + 2 for k in shape[2:]), seed=1)
    made = decompose(random(*shape), "channel_svd", 2)
    first, second = made.factors
    assert torch.allclose(apply(apply(x, first), second), apply(x, made.kernel))


@every_case
def test_full_rank_reproduces_the_kernel(method: str, shape: tuple[int, ...]) -> None:
    kernel = random(*shape)
    made = decompose(kernel, method, methods.get(method).max_rank(spec_of(shape)))
    assert made.error < 1e-9
    assert torch.allclose(made.kernel, kernel, atol=1e-9)


@every_case
@pytest.mark.parametrize("separable", [False, True])
def test_with_moments_the_outputs_err_no_more(
    method: str, shape: tuple[int, ...], separable: bool
) -> None:
    kernel, moments = random(*shape), moments_of(shape, separable=separable)
    second = torch.kron(*moments.second) if separable else moments.second[0]
    plain, made = (decompose(kernel, method, cheap(method, shape), m) for m in (None, moments))
    scale = in_outputs(kernel, second)
    assert made.error == pytest.approx(in_outputs(kernel - made.kernel, second) / scale, rel=1e-6)
    assert made.error <= in_outputs(kernel - plain.kernel, second) / scale + 1e-9


def test_other_outputs_wanted_are_fitted_and_measured() -> None:
    """With E[y p^T] the kernel of y is approximated; what no kernel explains of y is lost."""
    shape = (7, 6, 3, 2)
    kernel, wanted = random(*shape), random(*shape, seed=1)
    second = covariance(36) + 0.1 * torch.eye(36, dtype=torch.float64)
    rows, noise = wanted.flatten(1), 0.5
    energies = (rows @ second @ rows.T).diagonal()
    own = Moments(
        (second,), torch.zeros(36), 100, 10, rows @ second, torch.zeros(7), energies + noise
    )
    made = decompose(kernel, "channel_svd", 4, own)
    expected = decompose(wanted, "channel_svd", 4, replace(own, cross=None))
    assert torch.allclose(made.kernel, expected.kernel, atol=1e-3)
    energy = float(energies.sum())
    lost = expected.error**2 * energy
    assert made.error == pytest.approx(sqrt((lost + 7 * noise) / (energy + 7 * noise)), rel=1e-4)


@pytest.fixture(params=["numpy", "pytorch"])
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    before = tensorly.get_backend()
    tensorly.set_backend(request.param)
    yield
    tensorly.set_backend(before)


REBUILD = {
    "CPTensor": tensorly.cp_to_tensor,
    "TuckerTensor": tensorly.tucker_to_tensor,
    "TTTensor": tensorly.tt_to_tensor,
}
FORMS = {
    "cp": ("CPTensor", lambda kernel: kernel.flatten(2)),
    "cp4": ("CPTensor", lambda kernel: kernel),
    "tucker2": ("TuckerTensor", lambda kernel: kernel),
    "tensor_train": ("TTTensor", lambda kernel: kernel.movedim(0, -1)),
    "spatial_tt": (
        "TTTensor",
        lambda kernel: kernel.movedim(0, -1).flatten(3).flatten(0, 1),
    ),
}


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("method, shape", [case for case in CASES if case[0] in FORMS])
def test_tensorly_rebuilds_the_same_kernel(method: str, shape: tuple[int, ...]) -> None:
    made = decompose(random(*shape), method, a_third(method, shape), moments_of(shape))
    form, (name, arranged) = made.tensorly(), FORMS[method]
    assert type(form).__name__ == name
    rebuilt = torch.as_tensor(tensorly.to_numpy(REBUILD[name](form)))
    expected = arranged(made.kernel)
    assert rebuilt.shape == expected.shape == form.shape
    assert rebuilt.dtype == torch.float64
    assert torch.allclose(rebuilt, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(methods.names()) - set(FORMS)))
def test_methods_without_a_form_in_tensorly_name_those_with_one(name: str) -> None:
    shape = next(shape for method, shape in CASES if method == name)
    made = decompose(random(*shape), name, a_third(name, shape))
    with pytest.raises(UnsupportedLayerError) as caught:
        made.tensorly()
    assert str(caught.value) == (
        f"kernel: tensorly must have a form for the method, got {name}. Use one of cp, cp4, "
        "spatial_tt, tensor_train, tucker2, or the factors themselves."
    )


def test_a_method_registered_later_brings_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin(type(methods.get("channel_svd"))):
        name = "twin"

        def tensorly_form(self, weights: tuple[Tensor, ...]) -> str:
            return f"{len(weights)} factors"

    monkeypatch.setattr("factorize.methods.base._registry", dict(methods.base._registry))
    methods.register(Twin())
    assert decompose(random(5, 4, 3), "twin", 2).tensorly() == "2 factors"
    with pytest.raises(UnsupportedLayerError, match="tucker2, twin, or"):
        decompose(random(5, 4, 3), "channel_svd", 2).tensorly()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_type_is_computed_in_float64(dtype: torch.dtype) -> None:
    kernel = torch.nn.Parameter(random(5, 4, 3, 3).to(dtype))
    moments = moments_of((5, 4, 3, 3))
    made = decompose(kernel, "tucker2", (2, 3), moments)
    expected = decompose(kernel.detach().double(), "tucker2", (2, 3), moments)
    assert torch.equal(made.kernel, expected.kernel)
    assert {f.dtype for f in (*made.factors, made.kernel)} == {torch.float64}
    assert not made.kernel.requires_grad


def test_numpy_arrays_of_any_layout_are_taken() -> None:
    kernel = random(5, 4, 3, 3)
    array = np.asfortranarray(kernel.numpy())[:, ::-1]
    array.flags.writeable = False
    made = decompose(array, "cp", 3, seed=1)
    expected = decompose(kernel.flip(1), "cp", 3, seed=1)
    assert all(map(torch.equal, made.factors, expected.factors))
    moments = replace(moments_of((5, 4, 3, 3)), second=(covariance(36).float(),))
    assert decompose(array.astype(np.float32), "cp", 3, moments).error < made.error


@pytest.mark.parametrize("rank", [2, np.int64(2), (2, 2), [np.int32(2), 2]])
def test_ranks_are_integers_of_any_make(rank: object) -> None:
    made = decompose(random(5, 4, 3, 3), "tucker2", rank)  # type: ignore[arg-type]
    assert made.rank == (2, 2)
    assert {type(entry) for entry in made.rank} == {int}


def test_the_better_order_is_taken_unless_one_is_asked_for() -> None:
    kernel = random(5, 4, 3, 2)
    orders = methods.get("spatial_svd").variants
    by_order = {one: decompose(kernel, "spatial_svd", 2, variant=one) for one in orders}
    assert all(made.variant == one for one, made in by_order.items())
    best = min(by_order.values(), key=lambda made: made.error)
    taken = decompose(kernel, "spatial_svd", 2)
    assert isinstance(taken, Decomposition)
    assert (taken.variant, taken.error) == (best.variant, best.error)


def test_what_is_no_kernel_is_refused() -> None:
    unsupported = UnsupportedLayerError
    assert "got list of no dtype" in refusal(unsupported, [[1.0]], "cp", 1)
    assert "got Tensor of torch.int64" in refusal(unsupported, torch.ones(3, 3).long(), "cp", 1)
    assert "got ndarray of complex128" in refusal(unsupported, np.ones((3, 3)) * 1j, "cp", 1)
    for shape in ((3,), (3, 0, 3), (1,) * 6):
        assert f"got {shape}" in refusal(unsupported, torch.ones(shape), "cp", 1)
    spoilt = random(2, 3, 3).index_fill(1, torch.tensor([1]), torch.nan)
    assert "got 6 of 18 that are not" in refusal(unsupported, spoilt, "cp", 1)


def test_method_order_and_rank_are_checked() -> None:
    kernel = random(5, 4, 3, 3)
    message = refusal(UnsupportedLayerError, kernel, "cpd", 1)
    assert all(name in message for name in (*methods.names(), "'cpd'"))
    message = refusal(UnsupportedLayerError, kernel, "spatial_tt", 1)
    assert "cannot be decomposed by spatial_tt: conv2d: spatial_tt needs 3 spatial axes" in message
    message = refusal(UnsupportedLayerError, kernel, "spatial_svd", 1, variant="diagonal")
    assert "['vertical_first', 'horizontal_first'] for spatial_svd, got 'diagonal'" in message
    assert "Leave it out" in message
    for rank in (0, 21, 2.5, "3"):
        assert f"1..20 for cp, got {rank!r}" in refusal(RankError, kernel, "cp", rank)
    assert "tucker2 takes 2 rank(s), got [1, 2, 3]" in refusal(
        RankError, kernel, "tucker2", (1, 2, 3)
    )
    assert "1..4 for tucker2, got 5" in refusal(RankError, kernel, "tucker2", 5)


def test_moments_of_another_size_are_refused() -> None:
    kernel = random(5, 4, 3, 3)
    message = refusal(DataError, kernel, "cp", 1, moments_of((5, 3, 3, 3)))
    assert "must be (36, 36), or (4, 4) and (9, 9), for a kernel (5, 4, 3, 3), got (27, 27)" in (
        message
    )
    message = refusal(DataError, kernel, "cp", 1, moments_of((5, 3, 3, 3), separable=True))
    assert "got (3, 3) and (9, 9)" in message
    wrong = replace(moments_of((5, 4, 3, 3)), cross=random(6, 36))
    assert "cross moments must be (5, 36)" in refusal(DataError, kernel, "cp", 1, wrong)
