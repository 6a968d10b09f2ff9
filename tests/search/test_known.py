"""Errors of earlier runs: the same layer on the same images is not fitted anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from replaying import offered
from searching import plain
from torch import nn

import factorize
from factorize.measure import NumberCache, cache
from factorize.plan import Budget
from factorize.report import SearchReport
from factorize.search import known as known_module
from factorize.search.curves import Curves
from factorize.search.error_curve import macs_of
from factorize.search.known import KnownErrors
from factorize.search.layer_errors import LayerErrors

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


def test_a_second_search_computes_no_error_and_chooses_as_if_it_had(filled: Any) -> None:
    _, plan, first = filled
    again, second = searched()
    assert (second.errors_made, second.errors_cached) == (0, first.errors_made)
    assert first.errors_made > 0
    assert (again, second.trials) == (plan, first.trials)


def test_of_another_budget_only_more_fits_are_computed(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LayerErrors, "rough", None)
    _, other = searched(budget=Budget(macs=0.4))
    assert other.errors_made < filled[2].errors_made < 2 * other.errors_cached


@pytest.mark.parametrize(
    "how",
    [{"seed": 1}, {"data": [image + 1 for image in IMAGES]}, {"data": None}, {"refresh": True}],
)
def test_nothing_is_known_of_another_run(filled: Any, how: dict[str, Any]) -> None:
    _, report = searched(**how)
    assert report.errors_made > 0
    assert report.errors_cached == 0
    if "refresh" in how:
        assert report.errors_made == filled[2].errors_made
        assert searched()[1].errors_made == 0


def test_of_another_net_only_the_layers_that_are_the_same(filled: Any) -> None:
    model = plain()
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight[0, 0, 0, 0] += 1e-6
    _, changed = searched(model)
    assert 0 < changed.errors_made < filled[2].errors_made
    assert changed.errors_cached > filled[2].errors_made / 2


@pytest.mark.parametrize("where", ["at the third", "at the last"])
def test_an_interrupted_search_keeps_what_it_computed(
    filled: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(known_module, "_context", lambda method: {"another": method})
    real, count = KnownErrors.put, 0
    kept = 3 if where == "at the third" else filled[2].errors_made

    def put(self: KnownErrors, *entry: Any) -> None:
        nonlocal count
        real(self, *entry)
        count += 1
        if count == kept:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KnownErrors, "put", put)
        with pytest.raises(KeyboardInterrupt):
            searched()
    _, resumed = searched()
    assert resumed.errors_cached == kept
    assert resumed.errors_made == filled[2].errors_made - kept


def test_another_code_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_module, "_context", lambda method: {"code": "another"})
    assert searched()[1].errors_cached == 0
    monkeypatch.setattr(known_module, "_context", lambda method: None)
    assert searched()[1].errors_cached == 0


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
    assert (report.errors_made, report.errors_cached) == (0, 0)


def test_errors_are_the_same_to_the_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    specs = {site.spec.name: site.spec for site in factorize.find(model, X)}
    specs = {name: spec for name, spec in specs.items() if spec.in_channels > 3 and spec.kernel}
    chains = offered(specs, ["spatial_svd", "cp", "block_term", "grouped"])
    asked = [(name, key, ranks[-1]) for name, one in chains.items() for key, ranks in one.items()]

    def errors(known: KnownErrors | None) -> list[float]:
        curves, found = Curves(model, specs, chains, None, known=known), []
        for fits in (asked, ()):  # by rough looks; once there are fits
            found += [
                curves.error(name, key, macs_of(specs[name], key, rank))
                for name, one in chains.items()
                for key, ranks in one.items()
                for rank in ranks
            ]
            curves.fit(fits)
        return found

    bare = errors(None)
    assert bare[: len(bare) // 2] != bare[len(bare) // 2 :]
    for again in (False, True):
        if again:
            monkeypatch.setattr(LayerErrors, "rough", None)
            monkeypatch.setattr(LayerErrors, "_fit", None)
        with KnownErrors(NumberCache(folder / "errors.sqlite", "errors")) as known:
            assert errors(known) == bare
        assert (known.found > 0, known.made > 0) == (again, not again)


def test_a_look_is_not_taken_for_a_fit_nor_a_chain_for_another(folder: Path) -> None:
    key, other = ("cp", "", ()), ("tucker2", "", ())
    with KnownErrors(NumberCache(folder / "one.sqlite", "errors")) as known:
        known.put("layer", key, (8,), "rough", 0.5)
        known.put("layer", key, (8,), "fitted", 0.25)
    with KnownErrors(NumberCache(folder / "one.sqlite", "errors")) as known:
        assert known.get("layer", key, (8,), "rough") == 0.5
        assert known.get("layer", key, (8,), "fitted") == 0.25
        assert (known.found, known.made) == (2, 0)
        for asked in (
            ("layer", key, (9,), "fitted"), ("layer", other, (8,), "fitted"),
            ("layer", ("cp", "b", ()), (8,), "fitted"), ("another", key, (8,), "fitted"),
        ):  # fmt: skip
            assert known.get(*asked) is None
        assert (known.found, known.made) == (2, 4)


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
