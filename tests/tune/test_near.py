"""The default learning rate: less where the start is close to the original already."""

from __future__ import annotations

import pytest
from tuning import dataset, net

from factorize.tune import FinetuneConfig, finetune


@pytest.mark.parametrize(
    ("distance", "share"),
    [(1.0, 1.0), (0.1, 1.0), (0.025, 0.5), (1e-3, 0.1), (0.0, 0.02), (float("nan"), 1.0)],
)
def test_the_default_rate_goes_with_the_root_of_the_distance(distance: float, share: float) -> None:
    assert FinetuneConfig(1).near(distance).lr == pytest.approx(2e-3 * share)
    assert FinetuneConfig(1, optimizer="sgd").near(distance).lr == pytest.approx(0.05 * share)


def test_a_rate_that_is_given_stays() -> None:
    assert FinetuneConfig(1, lr=0.3).near(1e-6).lr == 0.3


def test_the_rate_that_was_used_is_on_record() -> None:
    close = finetune(net(0), net(0), dataset(), FinetuneConfig(1, label_weight=0.0))
    assert close.lr == pytest.approx(2e-3 * 0.02)
    given = finetune(net(0), net(0), dataset(), FinetuneConfig(1, lr=0.01, label_weight=0.0))
    assert given.lr == 0.01
