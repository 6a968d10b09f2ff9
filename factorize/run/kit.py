"""The kit: what a device far away is asked to time, and the nets of a search on its times."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from factorize.errors import DeviceError, ExportError, OutputError
from factorize.export.output_folder import PARTIAL
from factorize.fit import FitConfig
from factorize.measure import KitWriter, Recorded, Target, shape_of_net, splice
from factorize.measure.runtimes.running import batched
from factorize.methods import chain_of
from factorize.onnx_graph import Twin
from factorize.plan import Budget
from factorize.run.checks import resolve_device
from factorize.run.made_up import check_real, data_of, seen_by
from factorize.run.make_plan import images_for
from factorize.run.steps import beside, find
from factorize.search import as_onnx, best_nets, latency_model, wanted_chains
from factorize.search.prepare import prepare
from factorize.tensor.call import model_dtype
from factorize.tensor.wrappers import prepared
from factorize.types import LayerPlan, Progress


def write_kit(
    model: nn.Module,
    example_input: Any,
    out: str | Path,
    *,
    speedup: float = 2.0,
    method: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    batch: int = 1,
    times: Recorded | None = None,
    data: Any = None,
    fit: FitConfig | None = None,
    device: Any = "auto",
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write what has to be timed on another device, before a search can be for that device.

    The folder has small ONNX files without the model's weights, and ``bench.py``, which times them
    there and writes ``times.json``; `load_times` makes a target of that.

    Parameters
    ----------
    out
        A new folder.
    speedup
        That you will ask for: chains that it is likely to need are timed first.
    method, include, exclude
        As the search will have them.
    batch
        Samples per call.
    times
        Of a kit that was timed. The kit has the three best nets by these times then: what a net
        gains is not quite what its layers gain.
    data, fit, device, seed
        With `times`: as in `compress`.
    name
        Of the model, for the files.

    Returns
    -------
    dict
        How many ``layers``, ``chains`` and ``nets`` there are.

    Raises
    ------
    OutputError
        The folder is there already, or cannot be written to.
    FactorizeError
        As in `compress`.
    """
    budget = Budget(speedup=speedup)
    model, _ = prepared(model)
    device, example_input = resolve_device(device), beside(model, example_input)
    if model_dtype(model) != torch.float32:
        raise ExportError(
            f"kit: the model must be float32, got {str(model_dtype(model)).removeprefix('torch.')}."
            " Give model.float()."
        )
    if times is not None and times.batch != batch:
        raise DeviceError(f"--batch must be that of the times, {times.batch}, got {batch}.")
    names = [] if method == "auto" else [one.strip() for one in method.split(",")]
    sites = find(model, example_input)
    with _new_folder(Path(out)) as folder, tempfile.TemporaryDirectory() as scratch:
        kit = KitWriter(
            folder, net=shape_of_net(sites), model=name or type(model).__name__, batch=batch
        )
        groups, nets = [], []
        if times is None:
            target = Target(threads=1, batch=batch)
            groups = wanted_chains(
                sites, names, include=include, exclude=exclude, target=target, speedup=speedup
            )
        else:
            fit = fit or FitConfig()
            data = data_of(example_input, data, fit, seed=seed)
            check_real(data, epochs=0, budget=budget)
            data = images_for(
                model, example_input, data, device=device, seed=seed, progress=progress
            )
            search = prepare(
                seen_by(model, data, device=device), example_input,
                latency=latency_model(times), never_slower=True, names=names, include=include,
                exclude=exclude, data=data, config=fit, device=device, seed=seed,
                progress=progress,
            )  # fmt: skip
            nets = best_nets(search, speedup)
        if progress:
            progress("write the kit", 0, 0, {})
        _add_nets(kit, model, example_input, batch, Path(scratch),
                  [(choice.plan.factorized, choice.predicted) for choice in nets])  # fmt: skip
        for group in groups:
            kit.add_group(group)
        return kit.close()


def _add_nets(
    kit: KitWriter, model: nn.Module, example_input: Any, batch: int, scratch: Path,
    nets: Sequence[tuple[Sequence[LayerPlan], float | None]],
) -> None:  # fmt: skip
    """The dense net, and those with layers replaced."""
    import onnx

    fed = model.fed(example_input) if isinstance(model, Twin) else example_input
    whole, nodes = as_onnx(model, fed, scratch)
    weights = {tensor.name for tensor in whole.graph.initializer}
    inputs = [one.name for one in whole.graph.input if one.name not in weights]
    repeated = batched(fed, batch)
    if isinstance(repeated, dict) and set(inputs) <= repeated.keys():
        tensors = [repeated[one] for one in inputs]
    else:
        tensors = [one for one in tree_leaves(repeated) if isinstance(one, torch.Tensor)]
    feeds: dict[str, np.ndarray] = {
        one: tensor.detach().cpu().numpy() for one, tensor in zip(inputs, tensors, strict=True)
    }
    kit.add_net(whole, feeds)
    for layers, predicted in nets:
        chains = {layer.spec.name: chain_of(layer) for layer in layers}
        spliced = onnx.load_from_string(splice(whole, nodes, chains))
        kit.add_net(spliced, feeds, layers, predicted)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name when it is whole."""
    made = None
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise OutputError(
                f"{out}: the kit must have a folder of its own, and this is there already. Choose "
                "another --out, or delete it."
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out.parent))
        made.chmod(0o755)
        yield made
        made.replace(out)
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in _UNWRITABLE:
            raise
        raise OutputError(
            f"{out}: the kit must be a folder that can be written to, got: {error.strerror}. "
            "Choose another with --out."
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


_UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.ENAMETOOLONG,
    errno.EEXIST, errno.EDQUOT, errno.ENOENT, errno.EFBIG, errno.ELOOP, errno.EINVAL,
)  # fmt: skip
