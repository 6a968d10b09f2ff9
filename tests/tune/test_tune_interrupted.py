"""Fine-tuning that is interrupted: what is kept, and what a run then goes on from."""

import copy
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from tuning import dataset, equal, net, pressed_at

from factorize.system.signals import Terminated, terminable, uninterrupted
from factorize.tune import FinetuneConfig, finetune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_the_best_and_lets_the_present_weights_compete():
    original, model = net(0), net(1)
    scores = iter([0.5, 0.4, 0.7])
    result = finetune(
        model,
        original,
        dataset(),
        FinetuneConfig(3),
        progress=pressed_at(9),
        score=lambda m: next(scores),
    )
    assert result.interrupted
    assert result.epochs_done == result.best_epoch == 1.5
    start = copy.deepcopy(model)
    scores = iter([0.5, 0.4])
    result = finetune(
        model,
        original,
        dataset(),
        FinetuneConfig(3),
        progress=pressed_at(3),
        score=lambda m: next(scores),
    )
    assert result.best_epoch == 0
    assert equal(model, start)


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_waits_for_the_end_of_the_step():
    steps = []

    def step():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("whole")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_a_real_signal_in_the_middle_of_a_step(tmp_path):
    class Pressing(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, x):
            self.calls += self.training
            if self.calls == 4 and self.training:
                os.kill(os.getpid(), signal.SIGINT)
            return self.inner(x)

    data, original, path = dataset(), net(0), tmp_path / "run.pt"
    want = finetune(Pressing(net(1)), original, data, FinetuneConfig(1))
    assert want.interrupted
    assert want.steps == 4
    quiet = Pressing(net(1))
    quiet.calls = 100
    undisturbed = finetune(quiet, original, data, FinetuneConfig(1))
    pressing = Pressing(net(1))
    finetune(pressing, original, data, FinetuneConfig(1, checkpoint=path))
    resumed = Pressing(net(1))
    resumed.calls = 100
    got = finetune(resumed, original, data, FinetuneConfig(1, checkpoint=path, resume=True))
    assert got.history == undisturbed.history
    assert equal(resumed, quiet)


def test_sigterm_saves_and_ends_at_once(tmp_path):
    def terminate(stage, done, total, values):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    data, original, path = dataset(), net(0), tmp_path / "run.pt"
    finetune(whole := net(1), original, data, FinetuneConfig(2))
    config = FinetuneConfig(2, checkpoint=path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        finetune(net(1), original, data, config, progress=terminate)
    assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(path, weights_only=True)["state"]["steps"] == 3
    resumed = net(1)
    finetune(resumed, original, data, FinetuneConfig(2, checkpoint=path, resume=True))
    assert equal(resumed, whole)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_checkpoint_is_loaded_leaves_it_as_it_is(tmp_path):
    class Pressing(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.armed = inner, False

        def forward(self, x):
            return self.inner(x)

        def load_state_dict(self, *args, **kwargs):
            if self.armed:
                self.armed = False
                os.kill(os.getpid(), signal.SIGINT)
            return super().load_state_dict(*args, **kwargs)

    data, original, path = dataset(), net(0), tmp_path / "run.pt"
    config = FinetuneConfig(2, checkpoint=path)
    finetune(Pressing(net(1)), original, data, config, progress=pressed_at(3))
    saved = torch.load(path, weights_only=True)["model"]
    pressing = Pressing(net(1))
    pressing.armed = True
    finetune(pressing, original, data, replace(config, resume=True))
    kept = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(kept[key], saved[key]) for key in saved)


def test_ctrl_c_before_anything_is_known_is_not_a_result():
    def score(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(net(1), net(0), dataset(), FinetuneConfig(1), score=score)
