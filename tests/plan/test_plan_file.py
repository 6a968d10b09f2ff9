"""Plans as files that people edit: what they may change, and what is refused."""

import json
from pathlib import Path

import pytest
from planning import X, net
from torch import nn

import factorize
from factorize.errors import PlanError, RankError, UnsupportedLayerError
from factorize.plan import load_plan, save_plan


def test_saved_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    made = factorize.make_plan(net(), X, rank=2)
    save_plan(made, tmp_path / "plan.json")
    again = factorize.make_plan(net(), X, edited=load_plan(tmp_path / "plan.json"))
    assert again == made


def edit(tmp_path: Path, **changes: object) -> Path:
    """A plan file whose layer 1 is changed."""
    path = tmp_path / "plan.json"
    save_plan(factorize.make_plan(net(), X, rank=2), path)
    content = json.loads(path.read_text())
    content["layers"][1].update(changes)
    path.write_text(json.dumps(content))
    return path


def test_edited_plan_is_applied(tmp_path: Path) -> None:
    path = edit(tmp_path, method="tucker2", rank=[3, 5])  # the old method's variant is still there
    model = net()
    made = factorize.make_plan(model, X, edited=load_plan(path))
    chain = factorize.rewrite(model, made)[1]
    assert [tuple(c.weight.shape) for c in chain] == [(3, 16, 1, 1), (5, 3, 3, 3), (24, 5, 1, 1)]
    path = edit(tmp_path, rank=4, variant=None)  # the better order is taken
    assert factorize.make_plan(model, X, edited=load_plan(path)).layers[1].variant


def test_plan_and_a_choice_contradict_each_other() -> None:
    made = factorize.make_plan(net(), X, rank=2)
    for choice in ({"rank": 2}, {"method": "cp"}, {"include": ["1"]}, {"allow_costlier": True}):
        with pytest.raises(PlanError, match="already"):
            factorize.make_plan(net(), X, edited=made, **choice)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rank": [900]}, RankError, r"^1: rank must be an integer in 1\.\.48 for spatial_svd"),
        ({"rank": [1.5]}, RankError, "got 1.5"),
        ({"rank": [True]}, RankError, "got True"),
        ({"rank": [2, 2]}, RankError, "takes 1 rank"),
        ({"rank": "8"}, PlanError, '"rank" must be'),
        ({"method": "tukker"}, UnsupportedLayerError, "must be one of"),
        ({"method": 7}, PlanError, '"method" must be'),
        ({"method": "tucker2"}, RankError, "takes 2 rank"),
        ({"conv": {"kind": None}}, PlanError, '"conv" does not describe'),
        ({"name": "layer9"}, PlanError, "layer9: a plan must name convolutions"),
        ({"name": "0"}, PlanError, "'0' is named twice"),
        ({"conv": {}}, PlanError, '"conv" does not describe'),
        ({"conv": 3}, PlanError, 'a "name" and a "conv"'),
    ],
)
def test_plan_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        factorize.make_plan(net(), X, edited=load_plan(edit(tmp_path, **changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "readable file"),
        ("", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "factorize-plan"),
        ('{"format": "factorize-plan", "version": 2}', "version must be 1, got 2"),
        ('{"format": "factorize-plan", "version": 1}', '"layers" must be a list'),
        ('{"format": "factorize-plan", "version": 1, "layers": [3]}', "layer 0"),
    ],
)
def test_files_that_are_no_plans_are_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PlanError, match=message) as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)


def test_layer_of_another_shape_is_refused() -> None:
    made = factorize.make_plan(net(), X, rank=2)
    other = net()
    other[1] = nn.Conv2d(16, 24, 3, padding=1, stride=2, padding_mode="reflect")
    with pytest.raises(PlanError, match="1: padding_mode is 'zeros' in the plan and 'reflect'"):
        factorize.make_plan(other, X, edited=made)


def test_a_variant_of_no_method_is_refused_and_an_unknown_method_names_the_layer(
    tmp_path: Path,
) -> None:
    with pytest.raises(UnsupportedLayerError, match="^1: variant must be one of .*got 'sideways'"):
        factorize.make_plan(net(), X, edited=load_plan(edit(tmp_path, variant="sideways")))
    with pytest.raises(UnsupportedLayerError, match="^1: method must be one of"):
        factorize.make_plan(net(), X, edited=load_plan(edit(tmp_path, method="tukker")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": [3.0, 3]}, "whole numbers"),
        ({"groups": True}, "whole numbers"),
        ({"stride": [1]}, "one number per axis"),
        ({"input_sizes": [[12]]}, "one number per axis"),
        ({"input_sizes": [[-12, 12]]}, "whole numbers"),
        ({"kernel": "33"}, "must be lists"),
        ({"bias": 1}, '"bias" true or false'),
        ({"padding": [[1], 1]}, "whole numbers"),
    ],
)
def test_a_convolution_of_wrong_types_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = edit(tmp_path)
    content = json.loads(path.read_text())
    content["layers"][1]["conv"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=f"layer 1 \\('1'\\): .*{message}"):
        load_plan(path)


def test_sizes_of_maps_are_the_models_own(tmp_path: Path) -> None:
    path = edit(tmp_path)
    made = factorize.make_plan(net(), X, edited=load_plan(path))
    for sizes in ([], [[10**9, 10**9]]):
        content = json.loads(path.read_text())
        content["layers"][1]["conv"]["input_sizes"] = sizes
        path.write_text(json.dumps(content))
        assert factorize.make_plan(net(), X, edited=load_plan(path)) == made


@pytest.mark.parametrize("value", ["\ud800", json.loads("[" * 30 + "]" * 30)])
def test_what_could_not_be_written_again_is_refused(tmp_path: Path, value: object) -> None:
    path = edit(tmp_path, skip_reason=value)
    with pytest.raises(PlanError, match=r"plan\.json: the plan must be JSON"):
        load_plan(path)


def test_a_name_of_several_lines_is_told_in_one(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="convolutions of the model") as caught:
        factorize.make_plan(net(), X, edited=load_plan(edit(tmp_path, name="a\nb")))
    assert str(caught.value).startswith(r"'a\nb': ")


def test_a_kernel_of_any_size_is_compared_before_it_is_made(tmp_path: Path) -> None:
    path = edit(tmp_path)
    content = json.loads(path.read_text())
    content["layers"][1]["conv"]["kernel"] = [10**9, 10**9]
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="1: kernel is .* in the plan and"):
        factorize.load(tmp_path, net())
