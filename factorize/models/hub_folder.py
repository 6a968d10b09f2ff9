"""``hf:ORG/NAME`` or a folder with ``config.json``: image models of timm and of transformers.

Weights are read from safetensors files, a pickle only where it is trusted; no code of a folder
runs. What is downloaded, and how a folder is read, is left to those libraries.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorize.errors import ModelLoadError
from factorize.models import timm_name
from factorize.models.door import LoadedModel, Source
from factorize.models.image_processor import preprocessing_of
from factorize.models.model_file import check_tensors
from factorize.models.modules import computes_in
from factorize.system.imports import brief, import_extra
from factorize.system.quiet import quiet

OPTIONS: tuple[str, ...] = ()

PREFIX = "hf:"
"""Of a repository's name on the Hugging Face Hub, where a user gives it."""

MADE_BY_US = "factorized-"
"""Before the ``model_type`` of a compressed transformers model, so that transformers' automatic
classes refuse the folder; the others do by `_WEIGHTS`. They draw at random what they miss."""

_WEIGHTS = "transformers_weights"  # in a config.json, where transformers is to read another file

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_LARGEST = 10**7  # bytes of a config.json


def takes(source: Source) -> bool:
    """Whether the name is one of the Hub, or a folder's with a ``config.json``."""
    return source.name.startswith(PREFIX) or (source.path / "config.json").is_file()


def load(source: Source) -> LoadedModel:
    """Download what is not there, build what ``config.json`` says, and fill it."""
    name, trusted = source.name, source.trust_pickle
    folder = _downloaded(name, trusted) if name.startswith(PREFIX) else source.path
    if (folder / "plan.json").is_file():
        raise ModelLoadError(
            f"{name}: is a result of factorize (it has a plan.json). Load it by factorize.load, or "
            "pass the model that it was made of."
        )
    config = _read_config(folder, name)
    # timm reads no weights in several files, and would take a pickle beside them.
    safe = _SAFE[:1] if "architecture" in config else _SAFE
    _check_weights(folder, name, safe, trusted)
    if "architecture" in config:
        return _from_timm(folder, name, config)
    return _from_transformers(folder, name, config, trusted)


def fresh(folder: str | Path) -> nn.Module:
    """The original that the ``config.json`` of a result describes, with random weights.

    Raises
    ------
    ModelLoadError
        There is none, or the library that it is of is not installed or does not know it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{folder}: has no config.json, which only results of timm's and transformers' models "
            "have. Pass a fresh original model too."
        )
    config = _read_config(folder, str(folder))
    with torch.random.fork_rng(devices=[]):  # first weights draw from the caller's numbers
        if "architecture" in config:
            return _built(folder, str(folder), pretrained=False)
        cls, settings = _transformers_class(str(folder), config)
        try:
            return cls(settings).eval()
        except Exception as failure:
            raise _unusable(str(folder), failure) from failure


def _downloaded(name: str, trusted: bool) -> Path:
    """The repository's files in the Hub's own cache; a revision may follow an ``@``."""
    hub = import_extra("huggingface_hub", name, extra="hf")
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    files = ["config.json", "preprocessor_config.json", "model*.safetensors", _SAFE[1]]
    files.append("plan.json")  # by which a result is told
    files += ["pytorch_model*.bin", _PICKLED[1]] if trusted else []
    try:
        return Path(
            hub.snapshot_download(repository, revision=revision or None, allow_patterns=files)
        )
    except Exception as failure:  # no such name, no network, no access: it has a class for each
        raise ModelLoadError(
            f"{name}: cannot be downloaded: {brief(failure).rstrip('.')}. Check the name and "
            "the network, or pass a folder."
        ) from failure


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as failure:
        raise ModelLoadError(
            f"{name}: has no config.json. Pass a file with weights, and --arch."
        ) from failure
    except (OSError, ValueError, RecursionError) as failure:
        raise ModelLoadError(f"{path}: must be a JSON file: {brief(failure)}.") from failure
    if not isinstance(config, dict) or not {"architecture", "model_type"} & config.keys():
        raise ModelLoadError(
            f'{path}: must be of timm (with an "architecture") or of transformers (with a '
            '"model_type"). Pass the file with the weights, and --arch.'
        )
    # Attention of the form org/name is code from the Hub, which transformers would fetch and run.
    for key, value in config.items():
        if "attn_implementation" in key and "/" in str(value):
            raise ModelLoadError(f"{path}: {key} asks for code from the Hub: {value!r}. Remove it.")
    if _WEIGHTS in config and not (folder / "plan.json").is_file():
        raise ModelLoadError(
            f"{path}: the weights must be in model.safetensors, {_WEIGHTS} names "
            f"{str(config[_WEIGHTS])[:80]!r}. Rename that file, and remove the entry."
        )
    if "quantization_config" in config:
        raise ModelLoadError(f"{name}: is quantized. Start from the model before quantization.")
    return config


def _check_weights(folder: Path, name: str, safe: tuple[str, ...], trusted: bool) -> None:
    if any((folder / file).is_file() for file in safe):
        return
    pickled = next((file for file in _PICKLED if (folder / file).is_file()), None)
    if pickled and not trusted:
        raise ModelLoadError(
            f"{name}: has no model.safetensors, only {pickled}, a pickle. Use --trust-pickle if "
            "you trust whoever made it."
        )
    if not pickled:
        raise ModelLoadError(f"{name}: must have a model.safetensors beside config.json, has none.")


def _from_timm(folder: Path, name: str, config: dict[str, Any]) -> LoadedModel:
    model, other = (_seeded(folder, name, seed) for seed in range(2))
    check_tensors(model.state_dict(), name)
    # timm drops a head of another number of classes, and its random numbers stay.
    drawn = [
        key for key, value in other.state_dict().items()
        if not torch.equal(value, model.state_dict()[key])
    ]  # fmt: skip
    if drawn:
        raise ModelLoadError(
            f"{name}: the weights must be all of {config['architecture']}'s, {drawn[0]} is missing "
            f"or of another shape (and {len(drawn) - 1} more). Check that weights and config.json "
            "(num_classes) are of one model."
        )
    shape, steps, notes = timm_name.input_of(model, config.get("model_args") or {})
    return LoadedModel(model, f"{name} (timm {config['architecture']})", shape, steps, notes)


def _seeded(folder: Path, name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    return _built(folder, name, pretrained=True)


def _built(folder: Path, name: str, *, pretrained: bool) -> Any:
    timm = import_extra("timm", name, extra="timm")
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=pretrained).eval()
    except Exception as failure:
        raise _unusable(name, failure) from failure


def _from_transformers(
    folder: Path, name: str, config: dict[str, Any], trusted: bool
) -> LoadedModel:
    cls, settings = _transformers_class(name, config)
    pickled = trusted and not any((folder / file).is_file() for file in _SAFE)
    try:
        with _unreported():
            model, found = cls.from_pretrained(
                folder, config=settings, use_safetensors=not pickled, local_files_only=True,
                trust_remote_code=False, output_loading_info=True, dtype="auto",
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as failure:
        raise _unusable(name, failure) from failure
    # It draws at random what a file lacks or has of other shapes, and goes on.
    if differing := sorted(found["mismatched_keys"], key=str):
        key, stored, wanted = differing[0]
        raise ModelLoadError(
            f"{name}: the weights must be of {cls.__name__}'s shapes, {key} has {tuple(stored)} in "
            f"the file and {tuple(wanted)} by config.json (and {len(differing) - 1} more differ). "
            "Check that weights and config.json are of one model."
        )
    if missing := sorted(map(str, found["missing_keys"])):
        raise ModelLoadError(
            f"{name}: the weights must be all of {cls.__name__}'s, {missing[0]} is missing (and "
            f"{len(missing) - 1} more). Check that weights and config.json are of one model."
        )
    check_tensors(model.state_dict(), name)
    dtype, notes = computes_in(model.state_dict().values())
    shape, steps, told = preprocessing_of(folder, settings)
    if unused := sorted(map(str, found["unexpected_keys"])):
        told = (*told, f"weights not used: {unused[0]} (and {len(unused) - 1} more)")
    loaded = LoadedModel(model.to(dtype), f"{name} ({cls.__name__})", shape, steps)
    return replace(loaded, notes=(*notes, *told))


@contextmanager
def _unreported() -> Iterator[None]:
    """Without transformers' bars and tables: what is missing we say ourselves, in one line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(level)


def _transformers_class(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """The class of an image model, and its settings."""
    library = import_extra("transformers", name, extra="hf")
    names = config.get("architectures")
    wanted = names[0] if isinstance(names, list) and names else None
    cls = getattr(library, wanted, None) if isinstance(wanted, str) else None
    if not (isinstance(cls, type) and issubclass(cls, library.PreTrainedModel)):
        asks = " (it brings code of its own, which is not run)" if "auto_map" in config else ""
        raise ModelLoadError(
            f"{name}: transformers {library.__version__} has no model class {wanted!r}{asks}. "
            "Name a function that builds the model: pass the file with the weights, and --arch."
        )
    if cls.main_input_name != "pixel_values":
        raise ModelLoadError(
            f"{name}: {wanted} takes {cls.main_input_name}, and only models of images are loaded."
        )
    kind = str(config.get("model_type")).removeprefix(MADE_BY_US)
    settings = {key: value for key, value in config.items() if key != _WEIGHTS}
    try:
        return cls, cls.config_class.from_dict({**settings, "model_type": kind})
    except Exception as failure:
        raise _unusable(name, failure) from failure


def _unusable(name: str, failure: Exception) -> ModelLoadError:
    if type(failure).__name__ == "SafetensorError":
        return ModelLoadError(
            f"{name}: the weights are truncated or damaged: {brief(failure).rstrip('.')}. Copy or "
            "download them again."
        )
    return ModelLoadError(
        f"{name}: cannot be loaded: {brief(failure).rstrip('.')}. Check that weights and "
        "config.json are of one model."
    )
