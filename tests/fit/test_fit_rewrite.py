"""Models rewritten by a fit: closer, and the given ones left as they were."""

import copy

import pytest
import torch
from photographs import FEW, X, data_of, distance, net, photographs

import factorize
from factorize.types import Data

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


@pytest.fixture(scope="module")
def data() -> Data:
    return data_of(photographs())


@pytest.mark.parametrize("training", [False, True])
def test_rewrite_leaves_the_model_as_it_was(data: Data, training: bool) -> None:
    model = net().train(training)
    state = copy.deepcopy(model.state_dict())
    plan = factorize.make_plan(model, X, rank=3)
    fitted = factorize.rewrite(model, plan, data=data, config=FEW)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(m.training is training for one in (model, fitted) for m in one.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    images, plain = photographs(), factorize.rewrite(model, plan)
    assert distance(fitted.eval(), net(), images) < 0.5 * distance(plain.eval(), net(), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_of_another_precision_is_fitted_in_its_own(data: Data, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    result = factorize.compress(
        model, X.to(dtype), rank=3, data=data, fit=FEW, latency=False, device="cpu"
    )
    for one in (model, result.model):
        assert {p.dtype for p in one.parameters()} == {dtype}
    plain = factorize.rewrite(model, result.plan).double()
    seen = set()
    with model[0].register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype)):
        factorize.rewrite(model, result.plan, data=data, config=FEW)
    assert seen == {torch.promote_types(dtype, torch.float32)}  # sums of halves would overflow
    images = photographs().double()
    far = distance(plain, copy.deepcopy(model).double(), images)
    assert distance(result.model.double(), model.double(), images) < 0.5 * far
