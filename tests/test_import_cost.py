"""What `import factorize` costs, and what it leaves alone: asked of a fresh process."""

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = (
    "accelerate", "huggingface_hub", "matplotlib", "onnx", "onnxruntime", "onnxscript",
    "openvino", "pandas", "sklearn", "tensorly", "timm", "torchvision", "transformers",
)  # fmt: skip

LOOK = """
import json, os, sys, threading, time
start = time.perf_counter()
import torch
of_torch = time.perf_counter() - start

def settings():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random": torch.random.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "precision": torch.get_float32_matmul_precision(),
        "excepthook": repr(sys.excepthook),
    }

before, events = settings(), []
sys.addaudithook(lambda event, _: events.append(event))
start = time.perf_counter()
import factorize
ours = time.perf_counter() - start
print(json.dumps({
    "changed": [key for key, value in settings().items() if value != before[key]],
    "events": sorted(set(events)),
    "threads": threading.active_count(),
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "seconds": [of_torch, ours],
}))
"""


@pytest.fixture(scope="module")
def seen() -> Any:
    run = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_nothing_heavy_is_loaded(seen: Any) -> None:
    assert "torch" in seen["modules"]
    assert not set(HEAVY) & set(seen["modules"])


def test_no_setting_of_torch_is_changed(seen: Any) -> None:
    assert seen["changed"] == []


def test_no_environment_variable_is_set(seen: Any) -> None:
    """By what Python audits: a child inherits what this process, which imported it too, has set."""
    assert "import" in seen["events"]
    assert not {"os.putenv", "os.unsetenv"} & set(seen["events"])


def test_no_thread_is_started(seen: Any) -> None:
    assert seen["threads"] == 1


def test_time_is_told(seen: Any) -> None:
    of_torch, ours = seen["seconds"]
    print(f"import torch {of_torch:.2f} s, then import factorize {ours:.2f} s, "
          f"{ours / of_torch:.0%} of it")  # fmt: skip
