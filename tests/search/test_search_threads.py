"""Work that is shared out among threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from replaying import offered
from torch import Tensor, nn

from factorize import calibrate, find, methods
from factorize.fit import FitConfig
from factorize.search.curves import Curves
from factorize.search.error_curve import Fit, macs_of
from factorize.search.fits import Fits
from factorize.spec import Rank
from factorize.tensor.threads import MOST, in_threads
from factorize.types import Factorization, LayerPlan, Plan


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_gradients_are_off(threads: int):
    weight = torch.ones(3, requires_grad=True)
    with in_threads(lambda n: (n * weight).sum(), range(20)) as results:
        found = list(results)
    assert [(n, int(total)) for n, total in found] == [(n, 3 * n) for n in range(20)]
    assert not any(total.requires_grad for _, total in found)
    assert torch.get_num_threads() == threads


def test_as_many_are_worked_on_at_once_as_there_are_threads(threads: int):
    workers = min(threads, MOST)
    together = threading.Barrier(workers)  # breaks unless all of them are waiting
    with in_threads(lambda _: together.wait(timeout=30), range(2 * workers)) as results:
        assert len(list(results)) == 2 * workers


def test_torchs_threads_are_shared_out(threads: int):
    with in_threads(lambda _: torch.get_num_threads(), range(9)) as results:
        assert {n for _, n in results} == {1}


def test_items_are_asked_for_in_this_thread_and_not_long_before_their_turn(threads: int):
    asked: list[int] = []

    def items() -> Iterator[int]:
        for n in range(30):
            assert threading.current_thread() is threading.main_thread()
            asked.append(n)
            yield n

    with in_threads(lambda n: n, items()) as results:
        for n, _ in results:
            assert len(asked) <= n + 2 * min(threads, MOST)
    assert len(asked) == 30


@pytest.mark.parametrize("where", ["function", "items", "caller"])
def test_an_error_ends_it_and_the_threads_are_as_before(threads: int, where: str):
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(5)
        if where == "items":
            raise ValueError("bad")
        yield from range(5, 100)

    def function(n: int) -> int:
        if where == "function" and n == 5:
            raise ValueError("bad")
        done.append(n)
        return n

    def caller() -> None:
        with in_threads(function, items()) as results:
            for n, _ in results:
                if where == "caller" and n == 5:
                    raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as caught:
        caller()
    assert caught.traceback  # which holds the frames of the loop
    assert len(done) < 20
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_what_waits_for_a_thread_is_dropped_where_the_caller_gives_up(threads: int):
    del threads
    before, go = set(threading.enumerate()), threading.Event()
    begun: list[int] = []

    def function(n: int) -> None:
        begun.append(n)
        if n:
            go.wait(30)

    def caller() -> None:
        with in_threads(function, range(9)) as results:
            for _ in results:  # 1 and 2 are worked on, 3 waits
                raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        caller()
    go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert 3 not in begun


def test_a_layer_is_fitted_once_for_all_plans(monkeypatch: pytest.MonkeyPatch):
    fitted: list[tuple[str, Rank]] = []
    factorize = methods.factorize

    def counted(layer: LayerPlan, weight: Tensor, **options: Any) -> Factorization:
        fitted.append((layer.spec.name, layer.rank))
        return factorize(layer, weight, **options)

    monkeypatch.setattr(methods, "factorize", counted)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    specs = [site.spec for site in find(model, torch.zeros(1, 8, 6, 6))]
    fits = Fits(model, data=None, config=FitConfig(), device="cpu", seed=0, progress=None)

    def plan(*ranks: int) -> Plan:
        chosen = zip(specs, ranks, strict=True)
        return Plan(tuple(LayerPlan(spec, "cp", (r,)) for spec, r in chosen), {})

    one, two = fits.of(plan(2, 3)), fits.of(plan(2, 4))
    assert sorted(fitted) == [("0", (2,)), ("1", (3,)), ("1", (4,))]
    assert one.layers["0"] is two.layers["0"]


@pytest.mark.parametrize("calibrated", [False, True])
def test_curves_and_what_is_told_do_not_depend_on_threads(threads: int, calibrated: bool):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))
    specs = {site.spec.name: site.spec for site in find(model, torch.zeros(1, 8, 6, 6))}
    told: dict[int, list[tuple[str, Fit]]] = {1: [], threads: []}
    found, chains = {}, offered(specs, ["spatial_svd", "channel_svd", "cp"])
    images = [torch.randn(4, 8, 6, 6)]
    moments = calibrate.collect(model, specs, images).layers if calibrated else {}
    model[2].eval()
    modes = [module.training for module in model.modules()]
    training: set[bool] = set()
    for count, fits in told.items():
        torch.set_num_threads(count)

        def tell(name: str, fit: Fit, fits: list[tuple[str, Fit]] = fits) -> None:
            fits.append((name, fit))
            training.update(module.training for module in model.modules())

        curves = Curves(model, specs, chains, moments.items() or None, on_fit=tell, probes=(0.3,))
        curves.fit((name, key, kinds[key][1]) for name, kinds in chains.items() for key in kinds)
        found[count] = [
            curves.error(name, key, macs_of(specs[name], key, rank))
            for name, kinds in chains.items()
            for key, ranks in kinds.items()
            for rank in ranks
        ]
    torch.set_num_threads(threads)
    assert len(set(found[1])) > 6 * 3
    assert found[threads] == pytest.approx(found[1], rel=1e-6)
    names = [[(name, fit.key, fit.macs) for name, fit in fits] for fits in told.values()]
    assert names[0] == names[-1]
    assert training == {False}  # whoever asks for a weight would change the mode of its layer
    assert [module.training for module in model.modules()] == modes
