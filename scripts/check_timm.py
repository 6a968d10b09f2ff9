"""Take timm models through the door ``timm:NAME``: full rank, half the MACs, a folder of that.

    PYTHONPATH=. OMP_NUM_THREADS=1 python scripts/check_timm.py [--only 'mixnet*']

The zoo (`zoo.py`) has one model of every family, at ranks; here are also those whose convolutions
compute more than torch's: padding by the input's size, standardised weights, experts. None may be
replaced as if it were a plain one. Rows go to experiments/timm/results.json one by one. Exits 1
where outputs differ, a folder does not load, or a layer with a forward of its own was replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from zoo_models import enliven
from zoo_outputs import difference, feed_batch_norms, outputs

import factorize
from factorize.export import hub_files, save_weights
from factorize.graph.spec_of import KINDS
from factorize.measure import environment
from factorize.measure.environment import package_version
from factorize.models.load_model import load_model

NAMES = (
    "resnet10t", "resnext26ts", "efficientnet_lite0", "tf_efficientnet_lite0",
    "mobilenetv3_small_050", "convnext_atto", "regnetx_002", "repvgg_a0", "nfnet_l0", "dla34",
    "ghostnet_100", "ese_vovnet19b_slim", "mixnet_s", "tf_mixnet_s", "res2net50_14w_8s",
    "edgenext_xx_small", "fastvit_t8", "levit_128s", "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "resnetv2_50x1_bit", "tf_efficientnet_cc_b0_4e",
    "mobilevit_xxs", "resnetblur18", "densenet121", "hrnet_w18_small",
)  # fmt: skip
RESULTS = Path(__file__).parents[1] / "experiments" / "timm" / "results.json"
SIDE = 64
TOLERANCE = 1e-4
METHOD = "channel_svd"
"""Quick in closed form; the others are the conformance tests' and the zoo's."""


def check(name: str) -> dict[str, Any]:
    """A model's row."""
    import timm

    start = time.perf_counter()
    torch.manual_seed(0)
    sized = {"img_size": SIDE} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    loaded = load_model(f"timm:{name}", arch_args={"num_classes": 10, **sized})
    model, x = loaded.model, torch.randn(2, 3, SIDE, SIDE)
    enliven(model)
    feed_batch_norms(model, x)
    model.eval()
    expected = outputs(model, x)
    full = factorize.make_plan(
        model, x, method=METHOD, rank=1.0, include=["*"], allow_costlier=True
    )
    row: dict[str, Any] = {
        "model": name,
        "layers": len(full.layers),
        "own_forward": dict(_own(model)),
        "replaced": len(full.factorized),
        "left": dict(Counter(one.skip_reason for one in full.layers if not one.method)),
        "full_rank": difference(expected, outputs(factorize.rewrite(model, full), x)),
        "wrongly_replaced": [
            one.spec.name for one in full.factorized if _computes_more(model, one.spec.name)
        ],
    }
    try:
        half = factorize.make_plan(
            model, x, method=METHOD, budget=factorize.Budget(macs=0.5),
            fit=factorize.FitConfig("weights"),
        )  # fmt: skip
    except factorize.FactorizeError as reason:
        row["half"] = str(reason)
        half = full
    else:
        dense = sum(one.spec.macs for one in half.layers)
        row["half"] = round(sum(one.macs for one in half.layers) / dense, 4)
    made = factorize.rewrite(model, half)
    with tempfile.TemporaryDirectory() as folder:
        row["notes"] = hub_files.write(model, Path(folder))
        save_weights(made, Path(folder, "model.safetensors"))
        factorize.save_plan(half, Path(folder, "plan.json"))
        row["loaded"] = difference(outputs(made, x), outputs(factorize.load(folder), x))
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def _own(model: nn.Module) -> Counter[str]:
    """Classes of convolutions, and linear layers, that compute more than torch's."""
    return Counter(
        type(one).__name__ for name, one in model.named_modules() if _computes_more(model, name)
    )


def _computes_more(model: nn.Module, name: str) -> bool:
    module = model.get_submodule(name)
    plain = next((kind for kind in KINDS if isinstance(module, kind)), None)
    if plain is None:  # a user's own, such as experts: known by the parameter of a kernel
        weight = module._parameters.get("weight")
        return weight is not None and "conv" in type(module).__name__.lower()
    return any(
        getattr(type(module), method) is not getattr(plain, method)
        for method in ("forward", "_conv_forward")
        if hasattr(plain, method)
    )


def _failed(row: dict[str, Any]) -> bool:
    wrong = row["full_rank"] > TOLERANCE or row["loaded"] != 0
    return bool(wrong or row["wrongly_replaced"] or row["notes"])


def main() -> None:
    """Check the models that are asked for; rows of others stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", metavar="GLOB")
    only = parser.parse_args().only
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    rows = {row["model"]: row for row in stored["rows"]}
    failed = []
    for name in NAMES:
        if not fnmatchcase(name, only):
            continue
        rows[name] = row = check(name)
        if _failed(row):
            failed.append(name)
        print(json.dumps(row), flush=True)
        ordered = [rows[one] for one in NAMES if one in rows]
        versions = {**environment(), "timm": package_version("timm")}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"environment": versions, "rows": ordered}, indent=1) + "\n")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
