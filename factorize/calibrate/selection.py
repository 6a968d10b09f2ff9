"""Made-up images that a model's batch norms take for those that it was trained on.

Each batch norm holds the mean and variance of its channels on the training images. Of many
images of each kind those are kept that have them together, of the kind that comes closest: drawings
for a net that reads digits, leaves for one that knows photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from factorize.calibrate.preprocessing import input_range
from factorize.tensor.call import call, evaluating, to_model
from factorize.tensor.output_kinds import kind_of
from factorize.types import Preprocessing

_BATCH = 250  # images that go through the model at a time
_LEAST = 1e-8  # variance
_CLASSES = 0.5  # what even classes weigh beside the statistics
_REPEAT, _PART = 2, 4000  # how often an image is taken; of how many at a time
_LOOKED_AT, _READ = 1000, 256  # images of a kind for choosing kind and range; for reading it off
_PLAIN = Preprocessing((0.0,), (1.0,))
_USUAL: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (
    ((0.0,), (1.0,)),
    ((0.5,), (0.5,)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)


def statistics(
    model: nn.Module, preprocessing: Preprocessing, images: Tensor, outputs: str
) -> Tensor | None:
    """How each image departs from what the batch norms hold.

    Parameters
    ----------
    images
        (N, C, ...), see `Preprocessing.normalise`.
    outputs
        Their kind, see `Outputs`.

    Returns
    -------
    (N, D): zero on average over images with the training images' statistics. For each channel the
    mean and the second moment about the held mean, in units of the held deviation and variance;
    each batch norm counts as much as any other. For logits of K classes K columns more, which are
    zero on average where the classes are even. None where no batch norm was trained, or a sample
    is more than one row of its input.
    """
    norms = trained_norms(model)
    if not norms:
        return None
    rows: list[Tensor] = []
    found: list[Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(lambda norm, given: found.append(_departure(norm, given[0])))
        for norm in norms
    ]
    try:
        with evaluating(model):
            for part in images.split(_BATCH):
                found.clear()
                output = call(model, to_model(preprocessing.normalise(part), model))
                single = isinstance(output, Tensor) and output.ndim == 2
                if single and kind_of(output, outputs) == "logits":
                    shares = output.float().softmax(1)
                    found.append(_CLASSES * (shares - 1 / shares.shape[1]))
                if any(len(one) != len(part) for one in found):  # not one row for each image
                    return None
                rows.append(torch.cat(found, 1).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(rows)


def herded(rows: Tensor, count: int) -> Tensor:
    """Numbers of `count` rows that are zero together, taken greedily (herding: Welling 2009).

    From one part of the rows after the other, so that it takes little time; a row may be taken
    more than once, as the few that are right count more than many that are not.
    """
    total = torch.zeros(rows.shape[1])
    parts = max(1, len(rows) // _PART)
    taken: list[int] = []
    for number, part in enumerate(torch.arange(len(rows)).tensor_split(parts)):
        own = rows[part]
        lengths, used = own.square().sum(1), torch.zeros(len(own))
        repeat = max(_REPEAT, -(-count // len(rows)))
        while len(taken) < count * (number + 1) // parts:
            far = 2 * (own @ total) + lengths
            far[used >= repeat] = torch.inf
            best = int(far.argmin())
            used[best] += 1
            total += own[best]
            taken.append(int(part[best]))
    return torch.tensor(taken)


def suited(
    model: nn.Module,
    kinds: Sequence[Tensor],
    preprocessing: Preprocessing | None,
    count: int,
    *,
    outputs: str,
    most: int,
    seed: int = 0,
) -> tuple[list[Tensor], Preprocessing] | None:
    """Images to fit to and to hold out, by what the batch norms hold, and their preprocessing.

    They are all of one kind, that of which some come closest.

    Parameters
    ----------
    kinds
        For each kind images (N, C, ...): uint8, or float32 in 0..1 or, of sound, in -1..1.
    preprocessing
        None: the likeliest, of what the first batch norm tells and of what is usual.
    count
        How many are wanted, a fifth of them held out.
    outputs
        Their kind, see `Outputs`.
    most
        How many images may be looked at.

    Returns
    -------
    Images to fit to and others to hold out; None where no batch norm was trained.
    """
    found = []
    tried = max(min(_LOOKED_AT, most // (len(kinds) * (len(_USUAL) + 1))), 8)
    for images in kinds:
        for steps in [preprocessing] if preprocessing else _ranges(model, images[:tried]):
            rows = statistics(model, steps, images[:tried], outputs)
            if rows is None:
                return None
            far = float(rows[herded(rows, len(rows) // 4)].mean(0).square().sum())
            found.append((far if isfinite(far) else inf, len(found), images, steps))
    _, _, images, steps = min(found)
    rows = statistics(model, steps, images[: max(most, count)], outputs)
    assert rows is not None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    splits, cut = [], len(order) * 4 // 5
    for part, wanted in ((order[:cut], count - count // 5), (order[cut:], count // 5)):
        taken = part[herded(rows[part], max(wanted, 1))]
        splits.append(images[taken[torch.randperm(len(taken), generator=generator)]])
    return splits, steps


def _ranges(model: nn.Module, images: Tensor) -> list[Preprocessing]:
    """What the images may have to go through."""
    channels = images.shape[1]
    usual = [
        Preprocessing(mean, std) for mean, std in _USUAL if {len(mean), len(std)} <= {1, channels}
    ]
    read_off = input_range(model, _PLAIN.normalise(images[:_READ]))
    return [read_off, *usual] if read_off else usual


def _departure(norm: Any, x: Tensor) -> Tensor:
    """(N, 2 C): of the mean and the second moment of each channel of x (N, C, ...)."""
    x = (x.float() if x.dtype.itemsize < 4 else x).flatten(2) if x.ndim > 2 else x[..., None]
    mean, var = norm.running_mean, norm.running_var.clamp_min(_LEAST)
    x = x - mean[:, None]
    both = torch.cat([x.mean(2) / var.sqrt(), x.square().mean(2) / var - 1], 1)
    return both.float() / norm.num_features**0.5


def trained_norms(model: nn.Module) -> list[Any]:
    """The batch norms that hold the statistics of some training."""
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    ]
    return [one for one in norms if (one.running_var != 1).any() or (one.running_mean != 0).any()]
