"""A batch as people have it -> (images, labels) or (images,), as `types.Batch` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from factorize.errors import DataError
from factorize.tensor.call import batch_size
from factorize.types import Batch

IMAGES = ("pixel_values", "images", "image", "img", "inputs", "input", "x")
LABELS = ("labels", "label", "targets", "target", "y")
"""Keys of batches that are dicts, Hugging Face's among them; the first that is there counts."""


def plain(batch: Any, place: str) -> Batch:
    """Put a batch into the one form that all steps know.

    Dicts give up what their keys call images and labels. Images: uint8 is divided by 255, a list
    of (C, H, W) stays one, other lists and tuples are several inputs. Labels: integers become
    (N,) int64, also those of shape (N, 1); others stay as they are.

    Raises
    ------
    DataError
        There are no images in it; `place` says where.
    """
    if isinstance(batch, Mapping):
        keys = [next((k for k in known if k in batch), None) for known in (IMAGES, LABELS)]
        parts = [batch[key] for key in keys if key is not None]
        if keys[0] is None:
            raise DataError(
                f"{place}: a batch that is a dict must have its images under one of "
                f"{', '.join(IMAGES)}, got {sorted(map(str, batch))}. Rename the key."
            )
    else:
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
    labels = [_labels(part) for part in parts[1:]]
    images = _images(parts[0], labels[0] if labels else None) if parts else None
    if images is None:
        got = "no batch" if batch is None else type(batch).__name__
        if parts and parts is batch:
            got += f" of {type(parts[0]).__name__}"
        raise DataError(
            f"{place}: each batch must be (images, labels), (images,) or a dict of tensors with a "
            f"batch axis, got {got}. Yield such batches."
        )
    return images, *labels


def has_bytes(batch: Any) -> bool:
    """Whether there is a uint8 tensor in the images of a batch, as it came."""
    if isinstance(batch, Mapping):
        found = next((batch[k] for k in IMAGES if k in batch), None)
    else:
        found = batch[0] if isinstance(batch, (tuple, list)) else batch
    return any(str(getattr(leaf, "dtype", "")).endswith("uint8") for leaf in tree_leaves(found))


def label_kind(batch: Batch) -> tuple[bool, str]:
    """Whether a plain batch has class numbers, one for each image; else what it has, in words."""
    images, labels = (*batch, None)[:2]
    if labels is None:
        return False, ""
    if not isinstance(labels, Tensor):
        inner = f" of {type(labels[0]).__name__}" if isinstance(labels, list) and labels else ""
        return False, f"{type(labels).__name__}{inner}"
    floats = labels.is_floating_point()
    if labels.shape == (batch_size(images),) and not floats:
        return True, ""
    hot = labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all())
    what = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
    return False, f"multi-hot, {what}" if hot else what


def _images(images: Any, labels: Any) -> Any:
    """Ready for `tensor.call.call`, or None where they are no images."""
    images = tree_map(_tensor, images)
    leaves = tree_leaves(images)
    if not leaves or not all(isinstance(v, Tensor) and v.ndim for v in leaves):
        return None
    images = tree_map(lambda v: v.float() / 255 if v.dtype == torch.uint8 else v, images)
    if isinstance(images, Tensor):
        return images if images.ndim > 1 else None
    if isinstance(images, Mapping):
        return dict(images)
    # A detector's images differ in size, and its labels are no tensor.
    if not isinstance(labels, Tensor) and all(v.ndim == 3 for v in leaves):
        return list(images)
    return tuple(images) if len({len(v) for v in leaves}) == 1 else None


def _labels(labels: Any) -> Any:
    labels = _tensor(labels)
    if isinstance(labels, (tuple, list)):
        whole = labels and all(isinstance(v, int) for v in labels)
        return torch.tensor(labels) if whole else list(labels)
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        return labels.long() if labels.ndim == 1 else labels
    return labels


def _tensor(value: Any) -> Any:
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return torch.from_numpy(value) if numbers else value
