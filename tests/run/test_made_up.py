"""Runs without data: made-up images, where the model takes any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import factorize
from factorize.data import synthetic
from factorize.data.digits import digits_data
from factorize.data.synthetic import synthetic_data
from factorize.errors import DataError, NoConvolutionError, OutputError, PlanError
from factorize.fit import PASSES, FitConfig
from factorize.measure import accuracy
from factorize.models.digits import load_digits_model
from factorize.run import made_up

X = torch.randn(1, 1, 8, 8)


class Small(nn.Module):
    """A net with one batch norm, which has seen no made-up images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=1.0)
        self.next, self.head = nn.Conv2d(12, 12, 3), nn.Linear(12, 5)
        self(torch.randn(200, 1, 8, 8))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.next(torch.relu(self.bn(self.conv(x))))).mean((2, 3)))


def compressed(net: nn.Module, x: torch.Tensor = X, **how: Any) -> factorize.Result:
    how = {"rank": 8, **how}
    return factorize.compress(net, x, latency=False, device="cpu", **how)


def test_they_are_the_default_and_do_better_than_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthetic, "COUNT", 200)  # enough of them to tell
    monkeypatch.setattr(synthetic, "_DRAWINGS", 8)
    net, test = load_digits_model(), digits_data().test
    assert test is not None
    made, plain = compressed(net), compressed(net, fit=FitConfig("weights"))
    scores = [accuracy(one.model, test)["top1"] for one in (made, plain)]
    assert scores[0] > scores[1] + 50
    report = made.report
    assert report.settings["fit"]["how"] == "sequential"
    assert report.settings["input"]["preprocessing"]["std"] == (1.0,)
    assert "made-up images, no real ones" in report.quality_of
    assert any("no image of yours was seen" in note for note in report.notes)
    assert "recalibrated" not in report.quality
    assert plain.report.settings["input"] == {}
    state = made.model.state_dict()
    for name, value in net.state_dict().items():  # what was learnt on real images stays
        if "running_var" in name:
            assert torch.equal(state[name], value), name
        if "running_mean" in name:  # but for what the chains shift
            deviation = net.state_dict()[name.replace("mean", "var")].sqrt()
            assert float(((state[name] - value) / deviation).abs().mean()) < 0.2, name


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 5, 8, 8), X.long(), {"x": X}, torch.zeros(1, 3)],
    ids=["channels", "integers", "a dict", "no positions"],
)  # fmt: skip
def test_what_takes_no_images_gets_none(x: Any) -> None:
    assert made_up.data_of(x, None, FitConfig(), seed=0) is None
    assert made_up.data_of(X, None, FitConfig(), seed=0) is not None
    assert made_up.data_of(X, None, FitConfig("weights"), seed=0) is None


def test_what_needs_real_images_says_so_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factorize.run.compress.first_look", lambda *_: pytest.fail("work"))
    net = load_digits_model()
    for data in ("synthetic", None):
        with pytest.raises(DataError, match=r"max_drop.*needs real images"):
            compressed(net, rank=None, budget=factorize.Budget(max_drop=1.0), data=data)
        with pytest.raises(DataError, match="must have real images to tune on"):
            compressed(net, finetune=1, data=data)


def test_large_models_look_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = made_up.calibrate.suited

    def suited(*args: Any, most: int, **how: Any) -> Any:
        looked.append(most)
        return real(*args, most=most, **how)

    monkeypatch.setattr(made_up.calibrate, "suited", suited)
    net = load_digits_model()
    monkeypatch.setattr(made_up, "MACS", 300.5 * made_up.work(net, X))
    assert synthetic_data((1, 8, 8), suit=made_up.suiting(net, None, "cpu", 0), count=50).made_up
    assert looked == [300]


def test_blocks_are_tuned_together_where_that_is_quick_and_nobody_forbids_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = load_digits_model()
    for data, wanted in ((None, 1), (digits_data(), 0)):
        report = compressed(net, data=data).report
        told = [note for note in report.notes if "block(s) were tuned as a whole" in note]
        assert len(told) == report.settings["fit"]["reconstruct"] == wanted

    def quick(how: str = "sequential", **config: Any) -> bool:
        return made_up.is_reconstructed(net, X, FitConfig(**config), how)

    assert quick()
    assert not quick("outputs")
    assert not quick(reconstruct=False)
    assert not quick(reconstruct=True)  # the fit itself does so
    monkeypatch.setattr(made_up, "MACS", PASSES * made_up.work(net, X) / 2.1)
    assert not quick()


def test_blocks_are_tuned_as_if_it_had_been_asked_for() -> None:
    """For the model as it sees made-up images, too."""
    net = load_digits_model()
    data = synthetic_data((1, 8, 8), suit=made_up.suiting(net, None, "cpu", 0))
    unasked, asked, not_at_all = (
        compressed(net, data=data, fit=FitConfig(reconstruct=how)).model.state_dict()
        for how in (None, True, False)
    )
    for name, value in asked.items():
        assert torch.equal(unasked[name], value), name
    assert not all(torch.equal(not_at_all[name], value) for name, value in asked.items())


def test_fewer_are_made_where_each_has_many_positions_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = []
    monkeypatch.setattr(
        made_up, "synthetic_data", lambda shape, **said: counts.append(said["count"])
    )
    nets = [nn.Sequential(nn.Conv2d(1, 4, 3), last) for last in (nn.ReLU(), nn.Conv2d(4, 4, 3, 2))]
    x = torch.zeros(1, 1, 112, 112)
    monkeypatch.setattr(made_up, "PASS_MACS", 50 * made_up.work(nets[0], x))
    monkeypatch.setattr(made_up, "FEWEST", 1)
    for net in nets:
        made_up.make_up(made_up.MadeUp(), net, x, outputs=None, device="cpu", seed=0, progress=None)
    assert counts == [10, int(made_up.PASS_MACS / made_up.work(nets[1], x))]


def test_what_a_sample_costs_counts_the_values_that_convolutions_make() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, groups=4), nn.Flatten()
    )
    for samples in (1, 3):
        values = 4 * 6 * 6 + 4 * 2 * 2
        macs = 9 * 4 * 6 * 6 + 9 * 4 * 2 * 2
        found = made_up.work(net, torch.zeros(samples, 1, 8, 8))
        assert found == macs + made_up.VALUE * values


def test_a_model_that_takes_others_is_told_by_the_run() -> None:
    """Images that the model does not take are no reason to fail while they are chosen."""
    suit = made_up.suiting(load_digits_model(), None, "cpu", 0)
    assert synthetic_data((3, 8, 8), suit=suit, count=20).made_up


def test_batch_norms_normalise_what_is_unlike_their_own() -> None:
    net = load_digits_model()
    assert made_up.seen_by(net, None, device="cpu") is net
    assert made_up.seen_by(net, digits_data(), device="cpu") is net
    data = synthetic_data((1, 8, 8), count=200)
    held = {name: value.clone() for name, value in net.state_dict().items()}
    other: Any = made_up.seen_by(net, data, device="cpu")
    for name, value in net.state_dict().items():
        assert torch.equal(value, held[name]), name
        assert torch.equal(value, other.state_dict()[name]) == ("running" not in name), name
    images = torch.cat([batch[0] for batch in data.train])
    seen: list[torch.Tensor] = []
    other.bn.register_forward_hook(lambda _, __, y: seen.append(y))
    with torch.no_grad():
        other(images)
    var, mean = torch.var_mean(seen[0].transpose(0, 1).flatten(1), dim=1)
    assert torch.allclose(mean, other.bn.bias, atol=1e-3)
    live = other.bn.running_var > 1e-3
    assert torch.allclose(var[live].sqrt(), other.bn.weight[live].abs(), rtol=2e-2, atol=1e-3)


def test_at_full_rank_the_model_is_what_it_was() -> None:
    """Though the chains were fitted in a copy with other statistics."""
    net, x = load_digits_model(), digits_data().test
    assert x is not None
    made = compressed(net, rank=1.0, allow_costlier=True, fit=FitConfig("sequential"))
    images = next(iter(x))[0]
    with torch.no_grad():
        assert torch.allclose(made.model(images), net(images), atol=1e-3)


def test_what_fails_sooner_is_tried_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("factorize.run.compress.make_up", lambda *_, **__: pytest.fail("work"))
    net = load_digits_model()
    (tmp_path / "model.onnx").touch()
    with pytest.raises(OutputError, match="model.onnx already"):
        compressed(net, out=tmp_path)
    with pytest.raises(NoConvolutionError, match="nothing"):
        compressed(net, include=["nothing*"])
    with pytest.raises(NoConvolutionError):
        compressed(net, exclude=["*"])
    foreign = factorize.make_plan(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)), X, rank=2)
    with pytest.raises(PlanError):
        compressed(net, rank=None, plan=foreign)


def test_chains_are_fitted_for_the_model_as_it_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rule and by a search alike."""
    net, real = Small(), made_up.seen_by
    cases: list[dict[str, Any]] = [
        {"rank": 4}, {"rank": None, "budget": factorize.Budget(macs=0.5)}
    ]  # fmt: skip
    for how in cases:
        fitted: list[nn.Module] = []

        def seen(model: nn.Module, *args: Any, into: Any = fitted, **options: Any) -> nn.Module:
            into.append(real(model, *args, **options))
            return into[0]

        monkeypatch.setattr("factorize.run.pipeline.seen_by", seen)
        mean = net.bn.running_mean.clone()
        compressed(net, method="spatial_svd", **how)
        assert len(fitted) == 1
        assert not torch.equal(fitted[0].bn.running_mean, mean)
        assert torch.equal(net.bn.running_mean, mean)


def test_a_model_without_a_gradient_keeps_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = load_digits_model()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.detach())

    chosen: list[Any] = []
    real = made_up.calibrate.suited
    monkeypatch.setattr(
        made_up.calibrate, "suited", lambda *a, **k: chosen.append(real(*a, **k)) or chosen[0]
    )
    data = synthetic_data((1, 8, 8), suit=made_up.suiting(Cut().eval(), None, "cpu", 0), count=50)
    (splits, steps), (got,) = chosen[0], next(iter(data.train))
    assert torch.equal(got, steps.normalise(splits[0]))


def test_the_points_of_a_curve_are_rated_as_they_are_delivered() -> None:
    """Not as fits see the model, with batch norms that suit made-up images."""
    net = Small()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    seen: list[bool] = []

    def score(model: nn.Module) -> float:
        spread = {k: v for k, v in model.state_dict().items() if "running_var" in k}
        seen.append(all(torch.equal(value, state[name]) for name, value in spread.items()))
        return float(sum(p.numel() for p in model.parameters()))

    result = factorize.compress(
        net, X, search=factorize.SearchConfig(shares=(0.7, 0.5)), method="channel_svd",
        evaluate=score, latency=False, device="cpu",
    )  # fmt: skip
    assert len(result.report.curve) >= 3
    assert len(seen) >= 4
    assert all(seen)
