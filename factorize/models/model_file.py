"""Files that hold a model: what a file is, and the state dict or module inside of it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorize.errors import ModelLoadError
from factorize.models import architectures
from factorize.models.containers import find_weights
from factorize.models.pickles import load_pickled
from factorize.models.prefixes import without_wrappers
from factorize.system.archives import check_unpacked_size
from factorize.system.imports import brief

_LONGEST_NAME = 200
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NOT_MODELS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file (Keras?), not a PyTorch one",
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"%PDF": "a PDF file",
    b"<!DOCTYPE": "a web page: was the download blocked?",
    b"<html": "a web page: was the download blocked?",
    b"GGUF": "a GGUF file, not a PyTorch one",
    b"\x93NUMPY": "a NumPy array",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: a state dict without prefixes, or a whole module; and how it was found."""

    content: dict[str, Tensor] | nn.Module
    notes: tuple[str, ...] = ()


def read_checkpoint(
    path: Path, *, key: str | None = None, trust_pickle: bool = False
) -> Checkpoint:
    """Read a ``.pt``, ``.pth``, ``.th`` or ``.safetensors`` file, told apart by content.

    Parameters
    ----------
    key
        Of the weights, where the file has several, with dots between nested ones.

    Raises
    ------
    ModelLoadError
        There is no usable model in the file, or loading it would run foreign code.
    """
    kind = _kind(path)
    notes: list[str] = []
    if kind == "safetensors":
        from safetensors.torch import load_file

        try:
            loaded: Any = load_file(path)
        except Exception as failure:
            raise _damaged(path, failure) from failure
    else:
        try:
            loaded = load_pickled(path, trust=trust_pickle)
        except Exception as failure:
            raise _refused(path, failure) from failure
    content = find_weights(loaded, path, key, notes)
    if isinstance(content, dict):
        content = without_wrappers(content, notes)
        check_tensors(content, path)
    return Checkpoint(content, tuple(notes))


def check_tensors(state: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse tensors that cannot be a float model's weights.

    Raises
    ------
    ModelLoadError
        A name cannot be shown, or a tensor is quantized, sparse, without data, of a type that
        nothing here computes in, or has values that are not finite.
    """
    for name, tensor in state.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ModelLoadError(
                f"{path}: a name must be printable and have up to {_LONGEST_NAME} characters, got "
                f"{name[:_LONGEST_NAME]!r}. Rename it."
            )
        if tensor.is_quantized:
            raise ModelLoadError(f"{path}: {name} is quantized ({tensor.dtype}). {_FLOAT_MODEL}")
        if tensor.layout != torch.strided:
            raise ModelLoadError(
                f"{path}: {name} is sparse ({tensor.layout}). Save it after .to_dense()."
            )
        if tensor.is_meta:
            raise ModelLoadError(f"{path}: {name} has a shape but no values (meta device).")
        stored = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.numel() > stored:  # a few bytes must not ask for all the memory there is
            raise ModelLoadError(
                f"{path}: {name} repeats {stored:,} stored values to {tensor.numel():,}. "
                "Save it after .contiguous()."
            )
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if tensor.dtype not in _FLOATING:
            raise ModelLoadError(f"{path}: {name} is {tensor.dtype}. {_FLOAT_MODEL}")
        # A sum is finite only if all of it is, and much quicker than asking each value.
        if not torch.isfinite(tensor.sum()) and (bad := int((~torch.isfinite(tensor)).sum())):
            raise ModelLoadError(
                f"{path}: {name} has {bad:,} of {tensor.numel():,} values that are not finite "
                "(NaN or infinite). Training diverged: take an earlier checkpoint."
            )


_ONLY_WEIGHTS = "Or save model.state_dict() where it loads, and pass that with --arch."
_FLOAT_MODEL = "Start from the model before quantization, in float32, float16 or bfloat16."


def _kind(path: Path) -> str:
    """Tell ``torch`` and ``safetensors`` files apart from each other and from all else."""
    try:
        if path.is_dir():
            raise ModelLoadError(
                f"{path}: is a folder without a config.json. Pass a file in it, such as "
                f"{path}/model.pt."
            )
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as failure:
        if str(path) in architectures.names():
            raise ModelLoadError(
                f"{path}: no such file; did you mean {architectures.PREFIX}{path}?"
            ) from failure
        raise ModelLoadError(
            f"{path}: the model must be a file, and there is none. Check the path, or pass digits, "
            "torchvision:NAME, timm:NAME or hf:ORG/NAME."
        ) from failure
    except OSError as failure:
        raise ModelLoadError(f"{path}: cannot be read: {failure.strerror}.") from failure
    if not head:
        raise ModelLoadError(f"{path}: the file is empty. Copy or download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ModelLoadError(f"{path}: is a git-LFS pointer, not the file. Run `git lfs pull`.")
    if head.startswith(b"PK"):
        return _zip_kind(path)
    for magic, what in _NOT_MODELS.items():
        if head.startswith(magic):
            raise ModelLoadError(f"{path}: is {what}.")
    # ONNX has no magic number: a protobuf whose first field is the version and whose next ones are
    # the producer (2), its version (3) or the graph (7).
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a")):
        raise ModelLoadError(f"{path}: is an ONNX file. Pass the PyTorch model it was made of.")
    if head[8:9] == b"{":
        header = int.from_bytes(head[:8], "little")
        if header <= 100_000_000:  # the format's own bound
            if 8 + header > size:
                raise ModelLoadError(f"{path}: the file is truncated. Copy or download it again.")
            return "safetensors"
    if head[257:262] == b"ustar":
        raise ModelLoadError(
            f"{path}: is a tar archive: unpack it, or resave a model of PyTorch before 0.2."
        )
    if head[:1] == b"\x80":  # a pickle of protocol 2 or later: torch.save before 1.6
        return "torch"
    raise ModelLoadError(
        f"{path}: is not a model file (it starts with {head[:8]!r}). "
        "Expected a PyTorch (.pt, .pth, .th, .pt2), .safetensors or .onnx file."
    )


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            check_unpacked_size(archive, path, ModelLoadError)
    except ModelLoadError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError) as failure:
        raise ModelLoadError(
            f"{path}: the file is truncated or damaged. Copy or download it again."
        ) from failure
    inside = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in inside:
        raise ModelLoadError(
            f"{path}: is a TorchScript archive, whose layers cannot be replaced. Export the model "
            "that it was made of, by torch.export (.pt2) or to ONNX, and pass that; or pass its "
            "weights, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt'), with --arch."
        )
    if "data.pkl" not in inside:
        raise ModelLoadError(
            f"{path}: is a zip archive without a PyTorch checkpoint (it holds "
            f"{', '.join(sorted(names)[:3]) or 'nothing'})."
        )
    return "torch"


def _refused(path: Path, failure: Exception) -> ModelLoadError:
    """Say why a pickle was not loaded; the name it asked for is torch's to tell."""
    if isinstance(failure, ImportError) and failure.name:
        return ModelLoadError(
            f"{path}: its classes are defined in the module {failure.name}, which cannot be "
            f"imported here. Put its folder on PYTHONPATH, or install it. {_ONLY_WEIGHTS}"
        )
    lost = re.search(r"Can't get attribute '([^']+)' on <module '([^']+)'", str(failure))
    if lost is not None:
        return ModelLoadError(
            f"{path}: its class {lost[1]} is defined in the module {lost[2]}, which has none here: "
            f"it is another version, or the script that saved the file. {_ONLY_WEIGHTS}"
        )
    if "Only persistent_load of storage" in str(failure):
        return ModelLoadError(
            f"{path}: is a whole module in the file format before PyTorch 1.6, which holds code. "
            "Save it again with torch.save, or use --trust-pickle if you trust whoever made it."
        )
    asked = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(failure))
    if asked is None:
        return _damaged(path, failure)
    name = asked[1]
    if "quantiz" in name or "PackedParams" in name:
        return ModelLoadError(f"{path}: holds a quantized module ({name}). {_FLOAT_MODEL}")
    if name.startswith("torch._dynamo"):
        return ModelLoadError(
            f"{path}: holds a module made by torch.compile. Save what it was made of: "
            "torch.save(model._orig_mod, FILE)."
        )
    return ModelLoadError(
        f"{path}: asks for {name}, which is not a class of torch or torchvision, and unpickling it "
        "could run any code. Save model.state_dict() and pass --arch, or use --trust-pickle if you "
        "trust whoever made the file."
    )


def _damaged(path: Path, failure: Exception) -> ModelLoadError:
    # torch puts a page of advice before what went wrong.
    reason = re.search(r"WeightsUnpickler error:\s*([^\n]{,200})", str(failure))
    return ModelLoadError(
        f"{path}: cannot be loaded: the file is truncated, damaged or no PyTorch checkpoint "
        f"({reason[1].strip() if reason else brief(failure)})."
    )
