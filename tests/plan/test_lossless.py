"""Exactly separable kernels are replaced by cheaper chains, and nothing else is."""

import math

import pytest
import torch
from torch import nn

import factorize
from factorize.errors import NoConvolutionError, RankError

GENERATOR = torch.Generator().manual_seed(0)


def gaussian(size: int, sigma: float) -> torch.Tensor:
    x = torch.arange(size) - (size - 1) / 2
    return torch.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))


def filters(*kernels: torch.Tensor, depthwise: bool = False) -> nn.Conv2d:
    """One filter per output; all read one channel, or each its own."""
    count, size = len(kernels), kernels[0].shape
    inputs = count if depthwise else 1
    conv = nn.Conv2d(inputs, count, size, padding=(size[0] // 2, size[1] // 2), groups=inputs)  # type: ignore[arg-type]
    with torch.no_grad():
        conv.weight.copy_(torch.stack(list(kernels))[:, None])
    return conv


def random(rank: int, size: int, count: int) -> list[torch.Tensor]:
    return [
        torch.randn(size, rank, generator=GENERATOR) @ torch.randn(rank, size, generator=GENERATOR)
        for _ in range(count)
    ]


SMOOTH, SLOPE = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
BLUR = gaussian(5, 1.0)
EDGES = (torch.outer(SMOOTH, SLOPE), torch.outer(SLOPE, SMOOTH))
CASES = {  # a layer, and the weights that its chain reads for an output pixel of it, and before
    "sobel": (filters(EDGES[0]), 6, 9),
    "sobel, both directions": (filters(*EDGES), 12, 18),
    "gaussian 5x5": (filters(torch.outer(BLUR, BLUR)), 10, 25),
    "derivative of a gaussian": (filters(torch.outer(BLUR, BLUR * torch.arange(-2.0, 3))), 10, 25),
    "box 7x7": (filters(torch.full((7, 7), 1 / 49)), 14, 49),
    "box 7x7 of each of 8 channels": (filters(*[torch.ones(7, 7)] * 8, depthwise=True), 112, 392),
    "16 random 5x5 of rank 1": (filters(*random(1, 5, 16), depthwise=True), 160, 400),
    "16 random 5x5 of rank 2": (filters(*random(2, 5, 16), depthwise=True), 320, 400),
    "16 random 5x5 of one image": (filters(*random(1, 5, 16)), 16 * 10, 16 * 25),
}


@pytest.mark.parametrize("name", CASES)
def test_separable_layers_are_replaced_without_loss(name: str) -> None:
    conv, after, before = CASES[name]
    x = torch.randn(2, conv.in_channels, 12, 14, generator=GENERATOR)
    plan = factorize.make_plan(conv, x, rank="lossless", method="auto")
    (layer,) = plan.layers
    area = 12 * 14
    assert layer.spec.macs == before * area
    assert layer.macs == after * area
    chain = factorize.rewrite(conv, plan)
    with torch.no_grad():
        expected, actual = conv(x), chain(x)
    assert (actual - expected).norm() <= 2e-6 * expected.norm()


def test_what_is_not_separable_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(filters(*EDGES), nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 1))
    x = torch.randn(1, 1, 9, 9)
    plan = factorize.make_plan(model, x, rank="lossless", method="spatial_svd")
    assert plan.layers[0].method is None  # by this method alone there is nothing to win
    plan = factorize.make_plan(model, x, rank="lossless")
    assert plan == factorize.make_plan(model, x, rank="lossless", method="auto")
    sobel, *others = plan.layers
    assert sobel.method
    assert [one.skip_reason for one in others] == ["no chain is exact to 1e-06 and saves MACs"] * 2


def test_linear_and_1x1_layers_of_low_rank_are_replaced() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Linear(64, 32))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            left, right = torch.randn(len(layer.weight), 3), torch.randn(3, layer.weight[0].numel())
            layer.weight.copy_((left @ right).reshape(layer.weight.shape))
    plan = factorize.make_plan(model, torch.randn(2, 16, 2, 2), rank="lossless", method="auto")
    assert [layer.macs for layer in plan.layers] == [3 * 32 * 4, 3 * 96]


def test_almost_separable_is_not_separable() -> None:
    conv = filters(torch.outer(BLUR, BLUR) + 1e-5 * torch.eye(5))
    x = torch.randn(1, 1, 9, 9)
    (layer,) = factorize.make_plan(conv, x, rank="lossless", method="spatial_svd").layers
    assert layer.method is None


def test_the_command_leaves_all_else_as_it_is(command, tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(filters(*EDGES), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3))
    torch.save(model, tmp_path / "model.pt")
    ran = command(tmp_path / "model.pt", "--lossless", "--input-shape", "1,12,12",
                  "--out", "out")  # fmt: skip
    assert ran.code == 0, ran.err
    compressed = factorize.load("out", model)
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        expected, actual = model.eval()(x), compressed.eval()(x)
    assert torch.allclose(actual, expected, atol=1e-5)


def test_images_change_nothing_either() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(filters(*EDGES), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3)).eval()
    images = [(3 + 2 * torch.randn(20, 1, 12, 12, generator=GENERATOR),) for _ in range(4)]
    data = factorize.Data(images, images, None, False, None, "random images")
    result = factorize.compress(model, images[0][0][:1], rank="lossless", method="auto",
                                data=data, latency=False)  # fmt: skip
    assert result.report.recalibration is None
    with torch.no_grad():
        expected, actual = model(images[0][0]), result.model(images[0][0])
    assert (actual - expected).norm() <= 2e-6 * expected.norm()


def test_what_cannot_be_lossless_is_refused(command) -> None:
    with pytest.raises(RankError, match=r"^rank=\"lossless\" needs .* got cp\.$"):
        factorize.make_plan(
            CASES["sobel"][0], torch.randn(1, 1, 9, 9), rank="lossless", method="cp"
        )
    with pytest.raises(NoConvolutionError, match="Allow a loss"):
        factorize.compress(nn.Conv2d(4, 4, 3), torch.randn(1, 4, 9, 9), rank="lossless",
                           method="auto", latency=False)  # fmt: skip
    for more in (["--rank", "3"], ["--finetune", "1"], ["--speedup", "2"], ["--energy", "0.9"]):
        ran = command("digits", "--lossless", *more)
        assert ran.code == 2
        assert "--lossless" in ran.err
