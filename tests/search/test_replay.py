"""Nets that are run again with one kernel replaced."""

import copy

import pytest
import torch
from replaying import BATCHES, IMAGES, net
from torch import Tensor, nn
from torch.nn import functional as F

import factorize
from factorize.errors import DataError
from factorize.search.replay import IncomparableError, Replay
from factorize.tensor.layout import forward

# Replay


@pytest.mark.parametrize("memory", [1e9, 3e4, 0])
@pytest.mark.parametrize("name", ["stem", "a", "b", "twice"])
def test_replay_is_equal_to_the_last_bit(name, memory):
    model = net()
    replay = Replay(model, BATCHES, memory=memory)
    other = copy.deepcopy(model)
    conv_ = other.get_submodule(name)
    with torch.no_grad():
        conv_.weight.mul_(torch.rand_like(conv_.weight))  # type: ignore[union-attr, operator]
    got = torch.cat(list(replay.run(name, conv_.weight.detach())))  # type: ignore[union-attr]
    with torch.no_grad():
        wanted = torch.cat([forward(other, batch) for batch in BATCHES])
        same = torch.cat([forward(model, batch) for batch in BATCHES])
    assert torch.equal(got, wanted.double())
    assert torch.equal(torch.cat(replay.outputs), same.double())
    assert not torch.equal(wanted, same)


def test_replay_computes_the_rest_of_the_net_only(monkeypatch):
    model = net()
    replay = Replay(model, BATCHES[:1])
    seen = []
    real = nn.Conv2d._conv_forward
    monkeypatch.setattr(
        nn.Conv2d, "_conv_forward", lambda self, *a: seen.append(self) or real(self, *a)
    )
    list(replay.run("b", model.b.weight.detach()))
    assert seen == [model.b, model.twice, model.twice]


def test_replay_leaves_the_model_as_it_was_even_if_it_fails():
    model = net().train()
    model.a.forward = own = model.a.forward  # type: ignore[method-assign]
    replay = Replay(model, BATCHES)
    model.fails = True
    with pytest.raises(RuntimeError, match="the model's own"):
        list(replay.run("a", model.a.weight.detach()))
    assert model.training
    assert model.a.__dict__["forward"] is own
    assert all("forward" not in m.__dict__ for m in (model.stem, model.b, model.head))


def test_replay_of_a_nested_output_and_of_none_that_can_be_compared():
    class Two(nn.Module):
        def __init__(self, usable: bool) -> None:
            super().__init__()
            self.conv, self.usable = nn.Conv2d(3, 4, 3), usable

        def forward(self, x: Tensor):
            y = self.conv(x)
            return {"map": y, "more": [y.mean((1, 2, 3))]} if self.usable else y.argmax(1)

    replay = Replay(Two(True), BATCHES)
    assert replay.outputs[0].shape == (5, 4 * 36 + 1)
    assert not replay.logits
    with pytest.raises(DataError, match=r"a floating tensor with a row for each image, got Tensor"):
        Replay(Two(False), BATCHES)


def test_a_kernel_in_other_strides_gives_an_output_in_the_usual_ones():
    """Of a kernel of one position the last stride is free; convolutions take it for a layout."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv1d(8, 32, 1), nn.Conv1d(16, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).view(len(x), 16, -1))

    replay = Replay(Viewing().eval(), [torch.randn(2, 8, 65)])
    kernel = torch.randn(32, 8, 1).as_strided((32, 8, 1), (8, 1, 8))
    assert kernel.is_contiguous()
    assert len(list(replay.run("conv", kernel))) == 1


class Detector(nn.Module):
    """What it finds is a dict for each image, of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
        )  # fmt: skip

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        maps = self.body(torch.stack(images)).flatten(2).movedim(1, 2)
        return [{"boxes": one[one[:, 0] > 0, 1:5]} for one in maps]


def test_a_detector_is_searched_by_the_errors_of_its_layers():
    torch.manual_seed(0)
    model = Detector().eval()
    data = [(list(torch.randn(4, 3, 12, 12)),) for _ in range(6)]
    with pytest.raises(IncomparableError, match="got list without one"):
        Replay(model, [data[0][0]])
    options = {"data": data, "method": "spatial_svd,tucker2", "latency": False, "device": "cpu"}
    budget = factorize.Budget(macs=0.6)
    report = factorize.compress(model, data[0][0], budget=budget, **options).report
    assert report.derived()["left"]["macs"] <= 0.6
    assert any("chosen by the errors of their layers alone" in note for note in report.notes)
    assert report.search
    assert all(one["measured_loss"] is None for one in report.search.trials)
    judged = factorize.compress(model, data[0][0], budget=budget, loss=found, **options).report
    assert not any("chosen by the errors" in note for note in judged.notes)
    assert judged.search
    assert any(one["measured_loss"] is not None for one in judged.search.trials)
    with pytest.raises(IncomparableError):
        factorize.compress(
            model, data[0][0], budget=budget, search=factorize.SearchConfig("kl"), **options
        )


def found(student, original, batch) -> Tensor:
    counts = [
        torch.tensor([float(len(one["boxes"])) for one in own]) for own in (student, original)
    ]
    return (counts[0] - counts[1]).abs().mean()


@pytest.mark.parametrize("head", [5, 1])
def test_divergence_of_logits_and_change_of_other_outputs(head):
    model = net(head=head)
    replay = Replay(model, BATCHES)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.b.weight.mul_(0.5)
        ours, theirs = other(IMAGES).double(), model(IMAGES).double()
    got = replay.divergence("b", other.b.weight.detach())
    if head == 1:
        assert got == replay.change("b", other.b.weight.detach())
    else:
        wanted = F.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
        )
        assert got == pytest.approx(float(wanted), rel=1e-3)
    assert replay.divergence("b", model.b.weight.detach()) == pytest.approx(0, abs=1e-12)
