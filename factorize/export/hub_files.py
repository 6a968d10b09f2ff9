"""What makes the folder of a result one of the Hub: `config.json`, how images go in, a README.

For models of timm and of transformers alone. Neither is imported here: whose model it is has
imported it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorize.system.imports import brief, import_extra

NAMES = ("config.json", "preprocessor_config.json", "README.md")

_FACTORIZED = "factorized-"  # models.hub_folder.MADE_BY_US, which is not ours to import
_INSTEAD = "read README.md, and load this folder by factorize.load"


def names_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the files that `write` may make for a model."""
    if _is_timms(model):
        return NAMES[0], NAMES[2]
    return NAMES if _is_transformers(model) else ()


def write(model: nn.Module, folder: Path) -> list[str]:
    """Describe the original model beside the compressed one's weights and plan.

    Returns
    -------
    What could not be described, a line each.
    """
    try:
        if _is_timms(model):
            _write_timms(model, folder)
        elif _is_transformers(model):
            _write_transformers(model, folder)
        else:
            return []
    except Exception as failure:  # of those libraries, on a model that may be changed by hand
        (folder / "config.json").unlink(missing_ok=True)
        return [
            f"config.json is not written: {brief(failure)}. factorize.load needs a fresh original"
        ]
    (folder / "README.md").write_text(_README.format(name=type(model).__name__), encoding="utf-8")
    return []


_README = """\
---
tags: [factorize]
---

# {name}, factorized

Its convolutions are chains of cheaper ones, which `plan.json` lists. `config.json` is the
original's: neither timm nor transformers alone can load these weights, `factorize` builds the
original and puts the chains in first.

```python
import factorize  # and timm or transformers, whichever the model is of
from huggingface_hub import snapshot_download

model = factorize.load(snapshot_download("ORG/NAME"))  # or the path of this folder
```

Without any of them `model.onnx` runs in ONNX Runtime and `torch.export.load("model.pt2")` in torch.
"""


def _is_timms(model: Any) -> bool:
    inside = type(model).__module__.startswith("timm.")
    return inside and isinstance(getattr(model, "pretrained_cfg", None), dict)


def _is_transformers(model: Any) -> bool:
    library: Any = sys.modules.get("transformers")
    inside = type(model).__module__.startswith("transformers.")
    return bool(library) and inside and isinstance(model, library.PreTrainedModel)


def _write_timms(model: Any, folder: Path) -> None:
    """By timm's own function; checked, since not all arguments of a model are in its config."""
    timm = import_extra("timm", "config.json", extra="timm")
    hub = import_extra("timm.models._hub", "config.json", extra="timm")
    hub.save_config_for_hf(model, str(folder / "config.json"))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        again = timm.create_model(f"local-dir:{folder}", pretrained=False).eval()
    if str(again) != str(model.eval()):
        raise ValueError("timm's own configuration of this model makes another one")


def _write_transformers(model: Any, folder: Path) -> None:
    cached_file = import_extra("transformers.utils.hub", "config.json", extra="hf").cached_file
    settings = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    settings["model_type"] = f"{_FACTORIZED}{model.config.model_type}"
    settings["transformers_weights"] = _INSTEAD  # no file: every class refuses, and says so
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    name = "preprocessor_config.json"
    # Where the model came from: a folder, or a repository in the Hub's cache. Nothing is fetched.
    found = model.name_or_path and cached_file(
        model.name_or_path, name, local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if found:
        shutil.copyfile(found, folder / name)
