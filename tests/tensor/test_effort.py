"""How far fits go: less where they are only compared."""

from __future__ import annotations

from statistics import geometric_mean
from threading import Thread

import convolutions
import pytest
import torch
from norms import NORMS, SPEC, planned, random

from factorize import methods
from factorize.calibrate.collect import positions_per_image
from factorize.tensor.effort import Effort, effort, with_effort
from factorize.tensor.threads import in_threads

EACH = list(Effort)


@pytest.mark.parametrize("outer", EACH)
@pytest.mark.parametrize("inner", EACH)
def test_an_effort_within_another_is_no_more_than_it(outer: Effort, inner: Effort):
    assert effort() == Effort.WHOLE
    with with_effort(outer):
        assert effort() == outer
        with with_effort(inner):
            assert effort() == min(outer, inner)
        assert effort() == outer
    assert effort() == Effort.WHOLE


def test_an_effort_ends_with_an_exception():
    with with_effort(Effort.QUICK):
        with pytest.raises(KeyError), with_effort(Effort.ROUGH):
            raise KeyError
        assert effort() == Effort.QUICK
    assert effort() == Effort.WHOLE


@pytest.mark.parametrize("threads", [1, 3])
def test_work_that_is_shared_out_goes_as_far_as_who_asked_for_it(threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for asked in EACH:
            with with_effort(asked), in_threads(lambda _: effort(), range(9)) as results:
                assert {found for _, found in results} == {asked}
    finally:
        torch.set_num_threads(before)


def test_what_work_sets_for_itself_reaches_no_other():
    """Nor the work that the same thread does next."""

    def work(n: int) -> Effort:
        before = effort()
        if n % 2:
            with with_effort(Effort.ROUGH):
                assert effort() == Effort.ROUGH
        return before

    with with_effort(Effort.QUICK), in_threads(work, range(9)) as results:
        for _, found in results:
            assert found == effort() == Effort.QUICK


def test_a_thread_of_ones_own_begins_with_all_there_is():
    found: list[Effort] = []
    with with_effort(Effort.ROUGH):
        thread = Thread(target=lambda: found.append(effort()))
        thread.start()
        thread.join()
    assert found == [Effort.WHOLE]


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("method", convolutions.square())
def test_a_quick_fit_is_nearly_as_good_as_a_whole_one(method: str, kind: str):
    """Squared errors, 1.2 times as large as a rule.

    Of small random kernels, where sums of outer products depend on where they begin: CP may be
    better by chance.
    """
    for variant in methods.get(method).variants_of(SPEC):
        off = []
        for seed in range(3, 7):
            weight, norm = random(7, 6, 3, 2, seed=seed), NORMS[kind](seed + 1)
            squared = {}
            for asked in (Effort.QUICK, Effort.WHOLE):
                with with_effort(asked):
                    made = methods.factorize(planned(method, variant), weight, norm=norm)
                    squared[asked] = made.error**2
            off.append(squared[Effort.QUICK] / squared[Effort.WHOLE])
        least = 0.9 if method.startswith("cp") else 1 - 1e-6
        assert least <= geometric_mean(off) <= 1.35


def test_a_quick_fit_takes_moments_of_a_quarter_of_the_patches():
    whole = positions_per_image(SPEC, 100)
    for asked in (Effort.QUICK, Effort.ROUGH):
        with with_effort(asked):
            assert positions_per_image(SPEC, 100) == pytest.approx(whole / 4, abs=1)
