import copy
import math
import os
import signal
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from factorize.errors import DataError, ModelLoadError, OutputError, UnsupportedLayerError
from factorize.io.images import Shuffled
from factorize.signals import Terminated, terminable, uninterrupted
from factorize.tune import FinetuneConfig, finetune, recalibrate
from factorize.tune.distance import distance
from factorize.tune.guard import accelerator_on
from factorize.tune.optimizer import _cosine
from factorize.types import Data


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small lose more than they win by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def net(seed, outputs=4, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
    )


def dataset(count=96, labelled=True, seed=0, loader=True):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    tensors = (images, labels) if labelled else (images,)
    whole = TensorDataset(*tensors)
    train = DataLoader(whole, batch_size=16, shuffle=True)
    if not loader:
        train = [tuple(t[i : i + 16] for t in tensors) for i in range(0, count, 16)]
    held = [tuple(t[:32] for t in tensors)]
    return Data(train, held, None, labelled, 4 if labelled else None, "test")


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def pressed_at(step):
    def progress(stage, done, total, values):
        if done == step:
            raise KeyboardInterrupt

    return progress


# --- recalibration ---------------------------------------------------------------------------


def test_recalibration_gives_mean_and_variance_of_the_layers_input():
    original = net(0).eval()
    with torch.no_grad():
        original[1].running_mean.normal_()
    model = copy.deepcopy(original)
    model[1].running_mean.fill_(50.0)  # so far off that the new statistics are better
    data = dataset(count=90, loader=False)  # the last batch is smaller
    result = recalibrate(model, original, data)
    assert result.applied
    assert result.after < result.before
    assert result.layers == 2
    with torch.no_grad():
        x = model[0](torch.cat([batch[0] for batch in data.train]))
    var, mean = torch.var_mean(x, dim=(0, 2, 3))
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(model[1].running_var, var, rtol=1e-5)
    assert model[1].num_batches_tracked == original[1].num_batches_tracked
    # Deeper: train-mode batch norm before it, no dropout.
    with torch.no_grad():
        model[1].train()
        inner = torch.cat([model[:5](batch[0]) for batch in data.train])
    var, mean = torch.var_mean(inner, dim=(0, 2, 3))
    assert torch.allclose(model[5].running_mean, mean, atol=1e-5)
    assert torch.allclose(model[5].running_var, var, rtol=1e-4)


def test_recalibration_is_kept_where_it_is_better():
    data = dataset()
    original = net(0)
    original.train()
    with torch.no_grad():
        for _ in range(30):  # statistics of this very data
            for batch in data.train:
                original(batch[0])
    original.eval()
    model = copy.deepcopy(original)
    model[1].running_mean += 3
    result = recalibrate(model, original, data)
    assert result.applied
    assert result.after < result.before
    assert not model.training
    assert "better" in result.reason


@pytest.mark.parametrize("bad", [float("nan"), 100.0])
def test_recalibration_is_undone_where_it_is_not(bad):
    original = net(0).eval()
    model = copy.deepcopy(original)
    data = dataset()
    train = [(batch[0] * bad + bad,) for batch in data.train]
    result = recalibrate(
        model, original, Data(train, data.holdout, None, True, 4, "strange images")
    )
    assert not result.applied
    assert result.before == 0
    assert equal(model, original)
    assert "left as they were" in result.reason


def test_recalibration_is_undone_when_interrupted():
    original = net(0).eval()
    model = copy.deepcopy(original)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, original, dataset(), progress=pressed_at(32))
    assert equal(model, original)
    assert not model[1]._forward_pre_hooks
    assert not model[1].training


def test_recalibration_without_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    never_called = nn.Linear(1, 1)
    result = recalibrate(model, never_called, dataset())
    assert not result.applied
    assert "no batch-norm" in result.reason


@pytest.mark.parametrize("own", [torch.Generator(), None])
def test_recalibration_draws_the_same_images_whatever_was_drawn_before(own):
    data, original = dataset(count=1200), net(0)

    def noisy(samples):
        images = torch.stack([sample[0] for sample in samples])
        return (images + 0.1 * torch.randn(images.shape),)

    train = DataLoader(
        data.train.dataset, batch_size=16, shuffle=True, generator=own, collate_fn=noisy
    )
    data = replace(data, train=train)
    with torch.no_grad():
        for batch in data.train:  # statistics of this very data
            original(batch[0])
    original.eval()
    models = [copy.deepcopy(original) for _ in range(2)]
    for seed, model in enumerate(models):
        model[1].running_mean += 3
        torch.manual_seed(seed)
        drawn = torch.get_rng_state()
        assert recalibrate(model, original, data).applied
        assert torch.equal(torch.get_rng_state(), drawn)
    assert equal(*models)
    assert train.sampler.generator is own


# --- the loss --------------------------------------------------------------------------------


def test_distance_of_logits_is_the_scaled_kl_divergence():
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (torch.softmax(v / 3, 1) for v in (t, s))
    want = 9 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(distance([s], [t], 3.0), want)
    assert distance([t], [t]).item() == pytest.approx(0, abs=1e-7)


def test_distance_of_other_outputs_is_the_relative_squared_error():
    t = torch.randn(2, 3, 4, 4)
    assert distance([t * 1.1], [t]).item() == pytest.approx(0.01, rel=1e-4)
    assert distance([t * 100 * 1.1], [t * 100]).item() == pytest.approx(0.01, rel=1e-4)
    one = torch.randn(8, 1)  # no distribution over one class
    assert distance([one + 1], [one]).item() > 0
    assert distance([t * 1.1, one], [t]).item() == pytest.approx(0.01, rel=1e-4)


def test_schedule_warms_up_and_falls_to_zero():
    values = [_cosine(step, 100, 0.05) for step in range(100)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[5] == 1
    assert values[5:] == sorted(set(values[5:]), reverse=True)
    assert 0 < values[-1] < 0.001


# --- fine-tuning -----------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("loader", [True, False])
def test_finetuning_comes_closer_and_touches_only_the_student(labelled, loader):
    original, model = net(0), net(1)
    original.train()
    model.eval()
    teacher = copy.deepcopy(original)
    data = dataset(labelled=labelled, loader=loader)
    result = finetune(model, original, data, FinetuneConfig(4, lr=1e-2), score=None)
    assert equal(original, teacher)
    assert original.training
    assert not model.training
    assert all(p.grad is None for p in original.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert [h["epoch"] for h in result.history] == [0, 1, 2, 3, 4]
    assert (result.steps, result.epochs_done, result.interrupted) == (24, 4.0, False)
    assert result.history[-1]["loss"] < result.history[1]["loss"]
    if not labelled:
        assert result.history[-1]["distance"] < result.history[0]["distance"]
        assert all(h["score"] == -h["distance"] for h in result.history)
    assert (result.device, result.mixed_precision, result.stopped) == ("cpu", "no", None)


def test_outputs_that_are_no_logits():
    class Heads(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 1, 1)

        def forward(self, x):
            y = self.conv(x)
            return {"out": y, "aux": (self.other(y),)}

    original, model = Heads(0), Heads(1)
    result = finetune(model, original, dataset(labelled=False), FinetuneConfig(8, lr=3e-2))
    assert result.history[-1]["distance"] < 0.5 * result.history[0]["distance"]


def test_start_is_epoch_zero_and_survives_a_useless_run():
    original = net(0, dropout=0).eval()
    model = copy.deepcopy(original)
    with torch.no_grad():
        model[-1].weight += 0.01
    start = copy.deepcopy(model)
    result = finetune(
        model, original, dataset(labelled=False), FinetuneConfig(2, lr=10.0, max_grad_norm=1e9)
    )
    assert result.best_epoch == 0
    assert equal(model, start)


def test_the_best_epoch_wins_not_the_last():
    original, model = net(0), net(1)
    scores = iter([0.1, 0.9, 0.5])
    seen = []

    def score(m):
        seen.append(copy.deepcopy(m.state_dict()))
        return next(scores)

    result = finetune(model, original, dataset(), FinetuneConfig(2), score=score)
    assert result.best_epoch == 1
    assert all(torch.equal(v, seen[1][k]) for k, v in model.state_dict().items())


def test_nonfinite_loss_stops_and_keeps_the_best():
    original, model = net(0), net(1)
    data = dataset(loader=False)
    data.train[4][0][0, 0, 0, 0] = float("nan")
    start = copy.deepcopy(model)
    result = finetune(model, original, data, FinetuneConfig(2))
    assert "step 5" in result.stopped
    assert result.steps == 4
    assert equal(model, start)


@pytest.mark.parametrize("loader", [True, False])
@pytest.mark.parametrize("step", [2, 6, 9])
def test_resumed_run_equals_an_undisturbed_one(tmp_path, step, loader):
    path = tmp_path / "run.pt"
    data, original = dataset(loader=loader), net(0)
    whole, halved = net(1), net(1)
    config = FinetuneConfig(3, lr=1e-2)
    want = finetune(whole, original, data, config)

    config = FinetuneConfig(3, lr=1e-2, checkpoint=path)
    torch.manual_seed(99)  # what else the process draws must not matter
    cut = finetune(halved, original, data, config, progress=pressed_at(step))
    assert cut.interrupted
    assert cut.steps == step
    resumed = net(1)
    torch.manual_seed(123)
    config = FinetuneConfig(3, lr=1e-2, checkpoint=path, resume=True)
    got = finetune(resumed, original, data, config)
    assert got.history == want.history
    assert (got.steps, got.best_epoch) == (want.steps, want.best_epoch)
    assert equal(resumed, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    again = net(1)
    assert finetune(again, original, data, config).steps == want.steps
    assert equal(again, whole)


def test_resume_within_the_last_score(tmp_path):
    path = tmp_path / "run.pt"
    data, original = dataset(), net(0)
    want = finetune(whole := net(1), original, data, FinetuneConfig(1))

    config = FinetuneConfig(1, checkpoint=path)
    calls = []

    def second_fails(m):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return 0.0

    assert finetune(net(1), original, data, config, score=second_fails).interrupted
    config = FinetuneConfig(1, checkpoint=path, resume=True)
    resumed = net(1)
    got = finetune(resumed, original, data, config, score=lambda m: 1.0)
    assert len(got.history) == 2
    assert got.steps == want.steps
    assert torch.equal(resumed[0].weight, whole[0].weight) or want.best_epoch == 0


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


def test_finetuning_outside_of_the_main_thread():
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            finetune(net(1), net(0), dataset(count=32), FinetuneConfig(1))
        )
    )
    thread.start()
    thread.join()
    assert results[0].steps == 2


def test_checkpoints_are_written_while_an_epoch_runs(tmp_path):
    path = tmp_path / "run.pt"
    seen = []

    def progress(stage, done, total, values):
        seen.append(path.exists())

    config = FinetuneConfig(1, checkpoint=path, checkpoint_minutes=0)
    finetune(net(1), net(0), dataset(), config, progress=progress)
    assert all(seen)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_of_another_run_or_none(tmp_path):
    path, data = tmp_path / "run.pt", dataset(count=32)

    def resume(model=None, original=None, data=data, **changes):
        config = FinetuneConfig(1, checkpoint=path, resume=True, **changes)
        with pytest.raises(ModelLoadError) as caught:
            finetune(model or net(1), original or net(0), data, config)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no checkpoint" in resume()
    finetune(net(1), net(0), data, FinetuneConfig(1, checkpoint=path))
    assert "lr was 0.002, is 0.1" in resume(lr=0.1)
    assert "tuned model was" in resume(net(1, outputs=5))
    assert "original model was" in resume(original=net(2))
    moved = net(0)
    moved[1].running_mean += 1
    assert "original model was" in resume(original=moved)
    assert "data was 'test', is 'other'" in resume(data=replace(data, source="other"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable" in resume()
    path.write_bytes(b"")
    assert "not a readable" in resume()
    torch.save({"state_dict": {}}, path)
    assert "not a readable" in resume()
    torch.save({"fingerprint": Evil(tmp_path / "ran")}, path)
    assert "not a readable" in resume()
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    config = FinetuneConfig(1, checkpoint=tmp_path / "missing" / "run.pt")
    with pytest.raises(OutputError, match=r"run\.pt: the checkpoint cannot be written"):
        finetune(net(1), net(0), dataset(count=32), config)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="disk full"):
        finetune(net(1), net(0), dataset(count=32), FinetuneConfig(1, checkpoint=path))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_only_what_requires_a_gradient_is_tuned():
    model = net(1)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    last = model[-1].weight.clone()
    values = iter([0.0, 1.0])
    finetune(model, net(0), dataset(), FinetuneConfig(1), score=lambda m: next(values))
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[-1].weight, last)
    model.requires_grad_(False)
    with pytest.raises(UnsupportedLayerError, match="requires a gradient"):
        finetune(model, net(0), dataset(), FinetuneConfig(1))


def test_what_cannot_be_tuned_is_said():
    model = net(1)
    with pytest.raises(UnsupportedLayerError, match="share"):
        finetune(model, model, dataset(), FinetuneConfig(1))
    unknown = replace(dataset(), classes=None)
    with pytest.raises(DataError, match=r"0\.\.1 .*got 0\.\.3"):
        finetune(net(1, outputs=2), net(0, outputs=2), unknown, FinetuneConfig(1))
    endless = Data(iter([]), [], None, False, None, "endless")
    with pytest.raises(DataError, match="length"):
        finetune(model, net(0), endless, FinetuneConfig(1))
    boxes = nn.Sequential(nn.Conv2d(3, 1, 1))
    boxes.forward = lambda x: ["no tensor"]
    with pytest.raises(DataError, match="floating tensor"):
        finetune(boxes, net(0), dataset(), FinetuneConfig(1))


def test_a_last_batch_of_one_image_has_no_statistics():
    model = net(1)
    model[1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    data = dataset(count=33)
    result = finetune(model, net(0), data, FinetuneConfig(1))
    assert result.steps == 2
    assert all(math.isfinite(h["distance"]) for h in result.history)


def test_channels_last_with_kernels_of_five_axes():
    def volumes(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())

    batches = [(torch.randn(8, 3, 4, 4, 4),) for _ in range(2)]
    data = Data(batches, batches, None, labelled=False, classes=None, source="noise")
    result = finetune(volumes(0), volumes(1), data, FinetuneConfig(1, channels_last=True))
    assert result.steps == 2


def test_nothing_of_the_process_is_changed():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    environment = dict(os.environ)
    data, original, model = dataset(count=32), net(0), net(1)
    generator = torch.get_rng_state()
    with accelerator_on("cpu"):
        AcceleratorState._reset_state(True)
        users = Accelerator(cpu=True, mixed_precision="bf16")
        state = dict(AcceleratorState._shared_state)
        result = finetune(model, original, data, FinetuneConfig(1))
        assert dict(AcceleratorState._shared_state) == state
        assert (users.mixed_precision, result.mixed_precision) == ("bf16", "no")
    assert PartialState._shared_state == {}
    assert torch.equal(torch.get_rng_state(), generator)
    changed = {key for key, _ in dict(os.environ).items() ^ environment.items()}
    assert changed <= {"TORCHINDUCTOR_CACHE_DIR"}  # torch's own, set with the first optimizer
    assert data.train.sampler.generator is None


def test_loss_and_clipping_are_as_configured():
    original, model = (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2))
    data = dataset(loader=False)
    images, labels = (torch.cat(parts) for parts in zip(*data.train, strict=True))
    with torch.no_grad():
        student, teacher = model(images), original(images)
        want = distance([student], [teacher], 3.0) + 0.5 * nn.functional.cross_entropy(
            student, labels
        )
    config = FinetuneConfig(
        1, temperature=3.0, label_weight=0.5, max_grad_norm=1e-12, weight_decay=0
    )
    start, scores = copy.deepcopy(model), iter([0.0, 1.0])
    result = finetune(model, original, data, config, score=lambda m: next(scores))
    assert result.best_epoch == 1
    assert result.history[1]["loss"] == pytest.approx(float(want), rel=1e-5)
    assert torch.allclose(model[1].weight, start[1].weight, atol=1e-6)  # clipped to nothing


def test_steps_follow_the_schedule():
    model = net(1, dropout=0)
    weights = [model[0].weight.detach().clone()]
    finetune(
        model,
        net(0),
        dataset(),
        FinetuneConfig(1, lr=1e-3, weight_decay=0),
        progress=lambda *_: weights.append(model[0].weight.detach().clone()),
    )
    moves = [float((b - a).abs().max()) for a, b in pairwise(weights)]
    assert moves[0] == pytest.approx(1e-3, rel=0.01)  # Adam's first step is the learning rate
    assert moves[-1] < 0.3e-3


def test_labels_that_cannot_be_the_models_are_left_aside():
    data = dataset()  # four classes
    for outputs, used in ((4, True), (5, False)):
        runs = []
        for one in (data, replace(data, labelled=False)):
            original, model = net(0, outputs), net(1, outputs)
            runs.append(finetune(model, original, one, FinetuneConfig(1)).history)
        assert (runs[0] != runs[1]) == used
    assert all(entry["score"] == -entry["distance"] for entry in runs[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_tuned_in_float32_and_given_back(dtype):
    original, model = net(0).to(dtype), net(1).to(dtype)
    model[5] = model[1]  # shared
    model[4].bias.requires_grad_(False)
    teacher, before = copy.deepcopy(original), copy.deepcopy(model)
    slots = [*model.parameters(), *model.buffers()]
    data, seen = dataset(), []

    def score(m):
        seen.append({v.dtype for v in m.parameters()})
        return float(len(seen))

    assert math.isfinite(recalibrate(model, original, data).after)
    result = finetune(model, original, data, FinetuneConfig(2, lr=1e-2), score=score)
    assert seen == [{torch.float32}] * 3
    assert all(math.isfinite(entry["loss"]) for entry in result.history[1:])
    assert result.stopped is None
    assert all(a is b for a, b in zip(slots, (*model.parameters(), *model.buffers()), strict=True))
    for got, old in zip(slots, (*before.parameters(), *before.buffers()), strict=True):
        assert (got.dtype, got.requires_grad) == (old.dtype, old.requires_grad)
    assert model[0].weight.dtype == dtype
    assert not torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[4].bias, before[4].bias)
    assert equal(original, teacher)
    assert original[0].weight.dtype == dtype
    assert model.eval()(torch.zeros(2, 3, 8, 8, dtype=dtype)).dtype == dtype


class Detector(nn.Module):
    """As many rows for an image as it finds objects."""

    def __init__(self, objects, dicts):
        super().__init__()
        self.dicts = dicts
        self.conv, self.bn, self.objects = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), objects

    def forward(self, x):
        boxes = self.bn(self.conv(x)).mean((2, 3))
        found = [row.expand(self.objects, 4) for row in boxes]
        return [{"boxes": rows} for rows in found] if self.dicts else found


@pytest.mark.parametrize(
    ("dicts", "objects", "match"),
    [(True, 3, "dict per image"), (False, 2, r"\(3, 4\) and \(2, 4\)")],
)
def test_what_detectors_find_cannot_be_compared(dicts, objects, match):
    for run in (recalibrate, lambda *args: finetune(*args, FinetuneConfig(1))):
        with pytest.raises(DataError, match=match + ".*--evaluate") as caught:
            run(Detector(3, dicts), Detector(objects, dicts), dataset(labelled=False))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "numbers", [{"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"epochs": -1}]
)
def test_numbers_no_run_can_have(numbers):
    with pytest.raises(DataError, match=f"{next(iter(numbers))}: .* got") as caught:
        FinetuneConfig(**{"epochs": 1, **numbers})
    assert "\n" not in str(caught.value)


def test_the_largest_seed():
    sampler = Shuffled(32, 2**63 - 1)
    data = dataset(count=32)
    data = replace(data, train=DataLoader(data.train.dataset, batch_size=16, sampler=sampler))
    result = finetune(net(1), net(0), data, FinetuneConfig(2, seed=2**63 - 1))
    assert result.steps == 4
    assert sampler.epoch == 0
