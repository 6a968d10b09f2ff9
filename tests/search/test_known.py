"""Errors of earlier runs: the same layer on the same images is not fitted anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import plain
from torch import nn

import factorize
from factorize.measure import NumberCache, cache
from factorize.plan import Budget
from factorize.report import SearchReport
from factorize.search import known as known_module
from factorize.search.curves import curves
from factorize.search.known import KnownErrors

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = [torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, SearchReport]:
    """A cache folder after one search, the plan and the report."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTORIZE_CACHE", str(folder))
        return folder, *searched()


@pytest.fixture(autouse=True)
def folder(filled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder."""
    shutil.copytree(filled[0], tmp_path / "cache")
    monkeypatch.setenv("FACTORIZE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def searched(model: nn.Module | None = None, **how: Any) -> tuple[factorize.Plan, SearchReport]:
    options = {"budget": Budget(macs=0.6), "data": IMAGES, "method": "tucker2,spatial_svd", **how}
    result = factorize.compress(model or plain(), X, latency=False, **options)
    assert result.report.search
    return result.plan, result.report.search


def test_a_second_search_computes_no_curve_and_chooses_as_if_it_had(filled: Any) -> None:
    _, plan, first = filled
    again, second = searched()
    assert (second.curves_made, second.curves_cached) == (0, first.curves_made)
    assert first.curves_made > 0
    assert (again, second.trials) == (plan, first.trials)
    _, other = searched(budget=Budget(macs=0.4))
    assert (other.curves_made, other.curves_cached) == (0, first.curves_made)


@pytest.mark.parametrize(
    "how",
    [{"seed": 1}, {"data": [image + 1 for image in IMAGES]}, {"data": None}, {"refresh": True}],
)
def test_nothing_is_known_of_another_run(how: dict[str, Any]) -> None:
    _, report = searched(**how)
    assert report.curves_made > 0
    assert report.curves_cached == 0


def test_of_another_net_only_the_layers_that_are_the_same(filled: Any) -> None:
    model = plain()
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight[0, 0, 0, 0] += 1e-6
    _, changed = searched(model)
    assert 0 < changed.curves_made < filled[2].curves_made
    assert changed.curves_made + changed.curves_cached == filled[2].curves_made


def test_an_interrupted_search_keeps_what_it_computed(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_module, "_context", lambda method: {"another": method})
    real, count = KnownErrors.put, 0

    def put(self: KnownErrors, *entry: Any) -> None:
        nonlocal count
        real(self, *entry)
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KnownErrors, "put", put)
        with pytest.raises(KeyboardInterrupt):
            searched()
    _, resumed = searched()
    assert resumed.curves_cached == 3
    assert resumed.curves_made == filled[2].curves_made - 3


def test_another_code_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_module, "_context", lambda method: {"code": "another"})
    assert searched()[1].curves_cached == 0
    monkeypatch.setattr(known_module, "_context", lambda method: None)
    assert searched()[1].curves_cached == 0


def test_every_file_that_decides_an_error_is_part_of_the_key() -> None:
    context = known_module._context("cp")
    assert context
    assert context["torch"] == torch.__version__
    package = Path(known_module.__file__).parents[1]
    read: list[Path] = []
    real = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        read.append(self)
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        known_module._context.__wrapped__("cp")
    assert {package / one for one in ("methods/cp.py", "tensor/cp.py", "fit/layer.py")} <= set(read)


def test_divergences_want_every_kernel() -> None:
    _, report = searched(search=factorize.SearchConfig("kl"))
    assert (report.curves_made, report.curves_cached) == (0, 0)


def test_curves_are_the_same_to_the_bit(folder: Path) -> None:
    model = plain()
    specs = {site.spec.name: site.spec for site in factorize.find(model, X)}
    names = ["spatial_svd", "cp", "block_term", "grouped"]
    bare = curves(model, specs, names, None)
    for _ in range(2):
        with KnownErrors(NumberCache(folder / "errors.sqlite", "errors")) as known:
            assert curves(model, specs, names, None, known=known) == bare
    assert known.made == 0
    assert known.found > 0


def test_a_file_that_has_grown_too_large_begins_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NumberCache(folder / "a.sqlite") as one:
        one.put({}, {f"{'k' * 1000} {i}": {"ms": float(i)} for i in range(200)})
    size = (folder / "a.sqlite").stat().st_size
    monkeypatch.setattr(cache, "LARGEST", size - 1)
    with NumberCache(folder / "a.sqlite") as one:
        assert one.get({}, [f"{'k' * 1000} 0"]) == {}
        assert one.notes == []
    assert (folder / "a.sqlite").stat().st_size < size / 2
