"""What a model of the zoo puts out, so that two of them can be compared; its loss in training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from factorize.tensor.call import call

ENOUGH = 64  # values per channel for batch-norm statistics
HEADS = ("box", "mask", "keypoint")


class Heads(nn.Module):
    """A detector without its selection of boxes: feature maps and raw heads, on given boxes.

    Near-equal scores change places by rounding, and with them whole boxes: what is selected from
    cannot be compared, but what it is selected by can.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, images: Tensor) -> list[Tensor]:
        """All that the heads say of a batch of images."""
        model, side = self.detector, images.shape[-1]
        features = model.backbone(images)
        if isinstance(features, Tensor):
            features = {"0": features}
        maps = list(features.values())
        if not hasattr(model, "rpn"):
            return tree_leaves([maps, model.head(maps)])
        outputs = [maps, model.rpn.head(maps)]
        near, far = 0.1 * side, 0.7 * side
        boxes = images.new_tensor([[0, 0, far, far], [near, near, far, side], [near, 0, side, far]])
        roi, count = model.roi_heads, images.shape[0]
        for kind in HEADS:
            if getattr(roi, f"{kind}_head", None) is not None:
                pool, head = getattr(roi, f"{kind}_roi_pool"), getattr(roi, f"{kind}_head")
                pooled = pool(features, [boxes] * count, [(side, side)] * count)
                outputs.append(getattr(roi, f"{kind}_predictor")(head(pooled)))
        return tree_leaves(outputs)


def comparable(model: nn.Module, x: Any) -> tuple[nn.Module, Any]:
    """The model and input to compare by: a detector's heads, on a batch; else the same."""
    return (Heads(model).eval(), torch.stack(x)) if isinstance(x, list) else (model, x)


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """All floating outputs to compare by."""
    one, given = comparable(model, x)
    with torch.no_grad():
        found = tree_leaves(call(one, given))
    return [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]


def difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """The largest ``||a - b|| / ||a||`` over the outputs; infinite where shapes differ."""
    if [a.shape for a in expected] != [b.shape for b in actual]:
        return math.inf
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        gap, size = float((a.double() - b.double()).norm()), float(a.double().norm())
        share = gap / size if size else gap and math.inf
        worst = max(worst, math.inf if math.isnan(share) else share)
    return worst


def train_loss(model: nn.Module, x: Any) -> Tensor:
    """A scalar that depends on all outputs in train mode; a detector's own losses."""
    if isinstance(x, list):
        return sum(model(x, [_target(image) for image in x]).values())  # type: ignore[return-value]
    found = [t for t in tree_leaves(call(model, x)) if isinstance(t, Tensor) and t.requires_grad]
    return sum(t.square().mean() for t in found)  # type: ignore[return-value]


def _target(image: Tensor) -> dict[str, Tensor]:
    """One object in the middle half of an image, by all that detectors ask for."""
    side = image.shape[-1]
    low, high = side // 4, 3 * side // 4
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    mask[:, low:high, low:high] = 1
    return {
        "boxes": torch.tensor([[low, low, high, high]], dtype=image.dtype),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": mask,
        "keypoints": torch.tensor([[[side / 2, side / 2, 1.0]] * 17], dtype=image.dtype),
    }


def feed_batch_norms(model: nn.Module, x: Any) -> None:
    """Set batch-norm statistics from random images; a fresh net's output is close to constant.

    Statistics of a handful of pooled values stay as they are: they would blow rounding up.
    """
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [one.momentum for one in norms]

    def learn_from_many(module: Any, inputs: tuple[Tensor, ...]) -> None:
        module.momentum = float(inputs[0].numel() / inputs[0].shape[1] >= ENOUGH)

    hooks = [one.register_forward_pre_hook(learn_from_many) for one in norms]
    generator = torch.Generator().manual_seed(2)
    one, given = comparable(model, x)
    tensors = given if isinstance(given, tuple) else (given,)
    count = 16 if tensors[0].ndim == 4 else 4
    many = [torch.randn((count, *t.shape[1:]), generator=generator) for t in tensors]
    flags = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        one.train()
        try:
            one(*many)
        finally:
            for module, training in flags:
                module.training = training
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
