"""A twin beside its file in ONNX Runtime, before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factorize.errors import ModelLoadError
from factorize.onnx_graph.twin import Twin
from factorize.system.imports import brief
from factorize.tensor.call import evaluating, onnx_session, to_model
from factorize.tensor.twins import joined

TOLERANCE = 1e-4  # of the largest value
HALF_TOLERANCE = 2e-2
_SAMPLES = 4
_AT_ONCE = 16  # nodes whose outputs are looked at together


def check_twin(twin: Twin, example_input: Any) -> tuple[str, ...]:
    """Check that a twin computes what its file does; find how a batch goes through it.

    Parameters
    ----------
    example_input
        One sample, as the twin takes it.

    Returns
    -------
    What to tell of it.

    Raises
    ------
    ModelLoadError
        The runtime refuses the file, or twin and file differ: the first node that does is named.
    """
    file, form = twin.onnx_file, twin.onnx_form
    given = _named(twin, example_input)
    if form.batch > 1:
        given = {n: v.repeat(form.batch, *(1,) * (v.ndim - 1)) for n, v in given.items()}
    names = [value.name for value in file.proto.graph.output]
    try:
        session = onnx_session(file.path, 1)
        wanted = dict(zip(names, session.run(names, arrays(twin, given)), strict=True))
    except Exception as error:  # the runtime has dozens
        raise ModelLoadError(
            f"{file.path}: ONNX Runtime must run it on {_sizes(given)}, got "
            f"{brief(error).rstrip('.')}. Give the size that it takes with --input-shape, or "
            "export it again."
        ) from error
    try:
        with evaluating(twin):
            got = twin.values(given, names)
    except Exception as error:  # of whatever node
        told = _first_difference(twin, given) or "none that it computes by itself"
        raise ModelLoadError(
            f"{file.path}: its twin in torch does not run, {brief(error)}; the first node that "
            f"does not: {told}. Give the PyTorch model."
        ) from error
    apart = {name: difference(got[name], wanted[name]) for name in names}
    worst = max(apart, key=lambda name: apart[name])
    if not apart[worst] <= tolerance(twin):
        raise ModelLoadError(
            f"{file.path}: its twin in torch must give what ONNX Runtime gives within "
            f"{tolerance(twin):g}, got {apart[worst]:.3g} in {worst}; the first node that differs: "
            f"{_first_difference(twin, given) or 'none by itself'}. Give the PyTorch model."
        )
    return _settle_batch(twin, given, names)


def check_batch(twin: Twin, inputs: Any) -> None:
    """Check the first samples of a batch, in case real numbers tell what random ones do not.

    Raises
    ------
    ModelLoadError
        Twin and file differ.
    """
    file, size = twin.onnx_file, max(twin.onnx_form.batch, 1)
    session = onnx_session(file.path, 1)
    given = to_model(_named(twin, inputs), twin)
    for start in range(_SAMPLES):
        some = {name: v[start : start + 1] for name, v in given.items()}
        if not all(len(v) for v in some.values()):
            return
        some = {n: v.repeat(size, *(1,) * (v.ndim - 1)) for n, v in some.items()}
        if not alike(twin, some, session):
            raise ModelLoadError(
                f"{file.path}: its twin in torch must give what ONNX Runtime gives within "
                f"{tolerance(twin):g} for image {start} of the data too; the first node that "
                f"differs: {_first_difference(twin, some) or 'none by itself'}. Give the PyTorch "
                "model."
            )


def alike(twin: Twin, given: Mapping[str, Tensor], session: Any) -> bool:
    """Whether twin and file run on an input, and give the same."""
    names = [value.name for value in twin.onnx_file.proto.graph.output]
    try:
        wanted = session.run(names, arrays(twin, given))
        with evaluating(twin):
            got = twin.values(given, names)
    except Exception:  # each says in its own way that a size does not suit it
        return False
    return all(
        difference(got[name], value) <= tolerance(twin)
        for name, value in zip(names, wanted, strict=True)
    )


def arrays(twin: Twin, given: Any) -> dict[str, np.ndarray]:
    """An input of the twin, as ONNX Runtime takes it."""
    return {name: value.contiguous().numpy() for name, value in twin.fed(given).items()}


def tolerance(twin: Twin) -> float:
    """Of outputs, relative to the largest value."""
    return HALF_TOLERANCE if twin.onnx_file.half else TOLERANCE


def difference(ours: Any, theirs: Any) -> float:
    """Of two values, relative to the largest; infinite where they are of different form."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, np.ndarray):
        return 0.0 if isinstance(ours, list) == isinstance(theirs, list) else float("inf")
    if tuple(ours.shape) != theirs.shape:
        return float("inf")
    if not ours.numel():
        return 0.0
    one, two = ours.detach().double(), torch.from_numpy(np.asarray(theirs, np.float64))
    differs = (one != two) & ~(one.isnan() & two.isnan())
    if not differs.any():
        return 0.0
    size = float(two[two.isfinite()].abs().max()) if two.isfinite().any() else 1.0
    apart = float((one - two)[differs].abs().max())
    return apart / max(size, float(torch.finfo(torch.float32).tiny))


def _settle_batch(twin: Twin, given: Mapping[str, Tensor], names: Sequence[str]) -> tuple[str, ...]:
    """Find whether samples may go through together, and see that they do not mix."""
    form, steps = twin.onnx_form, twin.onnx_steps
    generator = torch.Generator().manual_seed(1)
    other = {
        name: torch.randn(v.shape, generator=generator).to(v) if v.is_floating_point() else v
        for name, v in given.items()
    }
    size = max(form.batch, 1)
    each = (given, other, given) if size == 2 else (given, other)  # not as many as it takes

    def mixes() -> str | None:
        try:
            with evaluating(twin):
                alone = [twin.values(one, names) for one in each]
                whole = {n: torch.cat([one[n][:1] for one in each]) for n in given}
                together = twin.values(whole, names)
            firsts = {n: joined([_part(one[n], size) for one in alone]).numpy() for n in names}
        except Exception as error:  # whatever the net says to another size
            return brief(error)
        apart = max(difference(together[n], firsts[n]) for n in names)
        return None if apart <= tolerance(twin) else f"outputs differ by {apart:.3g}"

    reason = mixes()
    if reason is not None and form.batch:
        twin.free_batch_()
        reason = mixes()
    if reason is None:
        fixed = f"its batch of {form.batch} is fixed in the file, not in the twin"
        return (fixed,) if form.batch else ()
    twin.onnx_steps = steps
    if size > 1:
        raise ModelLoadError(
            f"{twin.onnx_file.path}: its batch must be 1 or free, got {form.batch}, which its "
            f"nodes count on ({reason}). Export it with a free batch."
        )
    twin.onnx_form = replace(form, one_by_one=True)
    return (f"images go through one by one: a batch does not ({reason})",)


def _part(value: Tensor, parts: int) -> Tensor:
    """The first of so many parts."""
    return value[: len(value) // parts] if value.ndim else value


def _first_difference(twin: Twin, given: Mapping[str, Tensor]) -> str | None:
    """The first node, in order, whose output is not the runtime's on the same inputs."""
    import onnx

    file = twin.onnx_file
    made = {name for node in file.proto.graph.node for name in node.output[:1]}
    steps = [step for step in twin.onnx_steps if step.makes[0] in made]
    for start in range(0, len(steps), _AT_ONCE):
        some = steps[start : start + _AT_ONCE]
        model = file.fresh()
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=one.makes[0]) for one in some)
        try:
            theirs = _beside(file.path, model, arrays(twin, given), [s.makes[0] for s in some])
        except Exception:  # the runtime may not hand such a value out
            continue
        for step, value in zip(some, theirs, strict=True):
            label = f"{step.name} ({step.kind} of opset {file.opset})"
            try:
                with evaluating(twin):
                    ours = twin.values(given, [step.makes[0]])[step.makes[0]]
            except Exception as error:
                return f"{label}: {brief(error)}"
            if not difference(ours, value) <= tolerance(twin):
                return label
    return None


def _beside(path: Any, model: Any, feeds: Any, names: Sequence[str]) -> Any:
    """Run a model that shares a file's external data, each node by itself."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        ):
            link = Path(folder, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((path.parent / name).resolve())
        file = Path(folder, "part.onnx")
        file.write_bytes(model.SerializeToString())
        return onnx_session(file, 1).run(names, feeds)


def _named(twin: Twin, example_input: Any) -> dict[str, Tensor]:
    """An input of the twin by name."""
    if isinstance(example_input, Mapping):
        return dict(example_input)
    values = example_input if isinstance(example_input, tuple) else (example_input,)
    return dict(zip((v.name for v in twin.onnx_file.inputs), values, strict=True))


def _sizes(given: Mapping[str, Tensor]) -> str:
    return ", ".join("x".join(map(str, v.shape)) for v in given.values())
