"""What calibration images tell about a layer, and the kernel and norm to fit for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, sqrt

import torch
from torch import Tensor

from factorize.spec import ConvSpec
from factorize.tensor.norm import Norm


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input patches, and of the outputs wanted for them.

    A patch p has the layout of a row of the weight, (I, *kernel) flattened, length D. An output y
    (O,) is that of the convolution without its bias. All are float64 on the CPU, raw (not about
    the mean), averages over `count` patches taken from `images` images.

    Attributes
    ----------
    second
        (D, D): E[p p^T]. Or, where D is too large for that, (I, I) and (K, K) for K kernel
        positions, whose Kronecker product stands for it.
    mean
        (D,): E[p].
    cross
        (O, D): E[y p^T]; None where y = W p, the layer itself.
    output_mean, output_second
        (O,): E[y] and E[y^2], with `cross`.
    """

    second: tuple[Tensor, ...]
    mean: Tensor
    count: int
    images: int
    cross: Tensor | None = None
    output_mean: Tensor | None = None
    output_second: Tensor | None = None


@dataclass(frozen=True)
class LayerCalibration:
    """Moments that a layer is fitted to, and those of other images, to measure the fit on.

    One number of the fit, the `shrinkage`, comes from how far the two differ.
    """

    fit: Moments
    held_out: Moments


@dataclass(frozen=True)
class Calibration:
    """What a few hundred images tell about the inputs of each layer.

    Attributes
    ----------
    layers, specs
        By the layer's name. A saved file is checked against the specs of the model it is used for.
    source
        Where the images came from, in words.
    """

    layers: dict[str, LayerCalibration]
    specs: dict[str, ConvSpec]
    source: str = ""


def centred(moments: Moments) -> Moments:
    """Central moments: those that count where a bias makes up for the mean.

    A separable form keeps the trace and both partial traces of the S that it stands for.
    """
    mean = moments.mean
    if len(moments.second) == 1:
        second = (moments.second[0] - torch.outer(mean, mean),)
    else:
        channels, positions = moments.second
        means = mean.reshape(len(channels), -1)  # (I, K)
        by_channel = channels * positions.trace() - means @ means.T
        by_position = positions * channels.trace() - means.T @ means
        tiny = torch.finfo(mean.dtype).tiny
        second = (by_channel, by_position / by_channel.trace().clamp_min(tiny))
    moments = replace(moments, second=second, mean=torch.zeros_like(mean))
    if moments.cross is None:
        return moments
    assert moments.output_mean is not None
    assert moments.output_second is not None
    return replace(
        moments,
        cross=moments.cross - torch.outer(moments.output_mean, mean),
        output_mean=torch.zeros_like(moments.output_mean),
        output_second=(moments.output_second - moments.output_mean.square()).clamp_min(0),
    )


def shrinkage(layer: LayerCalibration) -> float:
    """How far to shrink S towards a multiple of the identity: a share in 0..1.

    The share that errs least from the true S (Ledoit & Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", J. Multivariate Anal. 88 (2004)). The sampling error
    that it needs is read off the difference of S between the images fitted to and those held out,
    so that patches of one image need not be independent of each other.
    """
    fit, held_out = layer.fit, layer.held_out
    pairs = zip(fit.second, held_out.second, strict=True)
    difference = sum(float((a - b).norm()) ** 2 for a, b in pairs)
    error = difference * held_out.images / (fit.images + held_out.images)  # of the fit's S alone
    spread = 0.0  # ||S - mu 1||^2
    for s in fit.second:
        spread += max(float(s.norm()) ** 2 - len(s) * float(s.diagonal().mean()) ** 2, 0.0)
    return min(error / spread, 1.0) if spread else 0.0


def target_and_norm(moments: Moments, weight: Tensor, shrunk: float) -> tuple[Tensor, Norm]:
    """The kernel to approximate, and the norm to do it in.

    Where outputs y are wanted that are not the layer's own, the kernel is the ridge regression of
    y on the patches, drawn towards the layer's weight: for W' of any form, E|y - W'p|^2 is the
    regression's own residual plus ``||target - W'||^2``. In a separable form there is no such
    regression: the kernel is the layer's weight.

    Parameters
    ----------
    weight
        (O, I, *kernel), float64.
    shrunk
        Share of S that is replaced by a multiple of the identity.

    References
    ----------
    Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks for classification and
    detection", TPAMI 2016, section 3.3 (asymmetric reconstruction).
    """
    second = [(1 - shrunk) * s for s in moments.second]  # large: changed in place from here on
    ridges = [shrunk * float(s.diagonal().mean()) for s in moments.second]
    for s, ridge in zip(second, ridges, strict=True):
        s.diagonal().add_(ridge)
    norm = Norm(tuple(second))
    if moments.cross is None or len(second) > 1:
        return weight, norm
    (s, *_), (ridge, *_) = second, ridges
    # S has the digits of float32: what lies below is noise, and may be negative, all of it even.
    tiny = torch.finfo(torch.float32).eps * float(s.diagonal().abs().sum()) + 1e-30
    s.diagonal().add_(tiny)
    root, failed = torch.linalg.cholesky_ex(s)
    while int(failed) and isfinite(tiny):
        s.diagonal().add_(9 * tiny)
        tiny *= 10
        root, failed = torch.linalg.cholesky_ex(s)
    s.diagonal().sub_(tiny)
    rows = weight.flatten(1)
    inner = (1 - shrunk) * moments.cross + (ridge + tiny) * rows  # (O, D)
    return torch.cholesky_solve(inner.T, root).T.reshape(weight.shape), norm


def output_error(
    moments: Moments, weight: Tensor, approximation: Tensor, *, mean_error: float = 0.0
) -> float:
    """``sqrt(E|y - W'p|^2 / E|y|^2)``, y the outputs wanted; in a separable form, W p.

    Parameters
    ----------
    weight, approximation
        (O, I, *kernel), float64: the layer's own W, and W'.
    mean_error
        Of central moments: the square of what the bias misses of the mean output.
    """
    norm = Norm(moments.second)
    if moments.cross is None or moments.output_second is None or len(moments.second) > 1:
        energy, error = norm.energy(weight), norm.energy(weight - approximation)
    else:
        energy = float(moments.output_second.sum())
        inner = float((moments.cross * approximation.flatten(1)).sum())
        error = max(energy - 2 * inner + norm.energy(approximation), 0.0)
    return sqrt((error + mean_error) / (energy or 1.0))
