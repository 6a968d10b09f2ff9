"""int8 on a processor without VNNI: whether the results are right, and never slower than in float.

    PYTHONPATH=. python experiments/int8/no_vnni.py

ONNX Runtime has no switch for its instruction set, so a copy of it is run in which two constants
of the library are changed: the bits by which it asks the processor for AVX512-VNNI and AVX-VNNI.
It then takes the integer kernels that it has for processors without (vpmaddubsw). Nothing that is
installed is changed. The tool looks at the flags in /proc/cpuinfo, so it is shown a copy of
these without VNNI. On an idle machine; writes no_vnni.json and no_vnni.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARY = "onnxruntime_pybind11_state*.so"
WINDOW = 4096  # bytes of code from the first question in MLAS's platform.cpp to the last
FIRST = b"\xa9\x00\x00\x00\x18"  # test eax, AVX | OSXSAVE
ASKED = (
    b"\x0f\xa2\xa8\x10",  # cpuid; test al, AVX-VNNI
    b"\x81[\xe0-\xe7]\x00\x08\x00\x00",  # and r32, AVX512-VNNI
)
CONSTANT = 3  # the byte of each that has the bit


def main() -> None:
    """Run the same with and without VNNI, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", choices=("yes", "no"), help="for the script itself")
    parser.add_argument("--flags", type=Path, help="for the script itself")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(_measured(options.flags)))
        return
    flags = Path("/proc/cpuinfo").read_text()
    if "vnni" not in flags:
        sys.exit("This processor has no VNNI: there is nothing to take away.")
    content: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _without_vnni(folder / "without")
        for kind in ("yes", "no"):
            shown = re.sub(r"\S*vnni\S*", "", flags) if kind == "no" else flags
            (folder / "flags").write_text(shown)
            path = [str(folder / "without")] * (kind == "no") + [os.environ.get("PYTHONPATH", "")]
            environment = {
                **os.environ, "PYTHONPATH": os.pathsep.join(path),
                "FACTORIZE_CACHE": str(folder / kind),  # times of one are not those of the other
            }  # fmt: skip
            command = [sys.executable, __file__, "--inside", kind, "--flags", folder / "flags"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            content[kind] = json.loads(done.stdout.splitlines()[-1])
            print(kind, content[kind], flush=True)
    (HERE / "no_vnni.json").write_text(json.dumps(content, indent=1) + "\n")
    _write(content)


def _without_vnni(folder: Path) -> None:
    """A copy of the runtime that does not see VNNI; all but its library are links."""
    found = find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    made = folder / "onnxruntime"
    (made / "capi").mkdir(parents=True)
    for source, target in ((package, made), (package / "capi", made / "capi")):
        for one in source.iterdir():
            if one.name not in ("capi", "__pycache__"):
                (target / one.name).symlink_to(one)
    (library,) = (package / "capi").glob(LIBRARY)
    (made / "capi" / library.name).unlink()
    (made / "capi" / library.name).write_bytes(_patched(library.read_bytes()))


def _patched(code: bytes) -> bytes:
    """The library without its two questions, where exactly one place looks like them."""
    places = []
    for start in re.finditer(re.escape(FIRST), code):
        window = code[start.start() : start.start() + WINDOW]
        found = [[*re.finditer(one, window, re.DOTALL)] for one in ASKED]
        if all(len(one) == 1 for one in found):
            places.append([start.start() + one[0].start() for one in found])
    if len(places) != 1:
        sys.exit(f"onnxruntime: {len(places)} places ask for VNNI as version 1.32 does, not one.")
    made = bytearray(code)
    for place in places[0]:
        made[place + CONSTANT] = 0
    return bytes(made)


def _measured(flags: Path) -> dict[str, Any]:
    import onnxruntime
    import torch

    from factorize.measure.environment import environment
    from factorize.quantize import saturation

    saturation.FLAGS = flags
    torch.set_num_threads(2)
    return {
        "runtime": str(Path(onnxruntime.__file__).parent),
        "largest": saturation.largest_code(),
        "kernel": {str(code): _kernel(code) for code in (127, 63)},
        "digits": _digits(),
        "nets": {name: _net(name) for name in ("resnet18", "digits")},
        "environment": environment(),
    }


def _kernel(code: int) -> dict[str, float]:
    """Of products that are all 255 * code: their sum by the kernel, the true one, and the time."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    depth = 256
    weight = np.full((depth, 256), code, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "one",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (256, depth))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (256, 256))],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    x = np.full((256, depth), 255, np.uint8)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        (y,) = session.run(None, {"x": x})
        times.append(time.perf_counter() - start)
    return {"sum": int(y[0, 0]), "true": 255 * code * depth, "ms": 1e3 * float(np.median(times))}


def _digits() -> dict[str, Any]:
    """What ``factorize digits --rank 8 --int8`` delivers."""
    import torch

    import factorize
    from factorize.measure import Target
    from factorize.models.digits import load_digits_model

    report = factorize.compress(
        load_digits_model(), torch.zeros(1, 1, 8, 8), rank=8, int8=True, device="cpu",
        data=factorize.load_data("digits"), target=Target("onnxruntime", 2),
    ).report  # fmt: skip
    speed = report.measured
    assert speed is not None
    return {
        "speedup": _shown(speed),
        "quality": {step: one["top1"] for step, one in report.quality.items()},
        "left": len(report.int8["check"]["left"]) if report.int8 else None,
        "told": [*report.failures, *(note for note in report.notes if "int8" in note)],
    }


def _net(name: str) -> dict[str, Any]:
    """A net in integers whatever that costs, and as the tool delivers it, beside float."""
    import torch

    from factorize.errors import ExportError
    from factorize.export import export_onnx
    from factorize.measure import LatencyModel, NumberCache, Target, speedup
    from factorize.models.digits import load_digits_model
    from factorize.quantize import as_integers
    from factorize.run.kept_in_float import timed_in_integers

    if name == "digits":
        net, x = load_digits_model(), torch.zeros(1, 1, 8, 8)
    else:
        from torchvision import models

        torch.manual_seed(0)
        net, x = getattr(models, name)().eval(), torch.randn(1, 3, 224, 224)
    target = Target("onnxruntime", 2, dtype="int8")
    in_float = replace(target, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.onnx")
        export_onnx(net, x, file)
        whole = speedup(in_float, file, as_integers(file), x)
        left: dict[str, str] = {}
        try:
            with NumberCache(None) as cache:
                left = timed_in_integers(file, x, LatencyModel(target, cache)).slower
            made = speedup(in_float, file, as_integers(file, exclude=left), x)
        except ExportError as error:
            return {"all": _shown(whole), "delivered": "float", "told": str(error)}
        return {"all": _shown(whole), "delivered": _shown(made), "left": left}


def _shown(one: Any) -> list[float]:
    return [one.speedup, one.speedup_p10, one.speedup_p90]


def _write(content: dict[str, Any]) -> None:
    """The page."""
    names = {"yes": "with VNNI", "no": "without"}
    environment = content["no"]["environment"]
    lines = [
        "# A processor without VNNI\n",
        "    PYTHONPATH=. python experiments/int8/no_vnni.py\n",
        "ONNX Runtime has no switch for its instruction set. A copy of its library in which two "
        "constants are changed does not see AVX512-VNNI and AVX-VNNI, and takes the integer "
        "kernels for processors without (`no_vnni.py`): those of AVX512, not of AVX2. The tool was "
        "shown the processor's flags without VNNI.\n",
        f"{environment.get('cpu', '')}, 2 threads, onnxruntime "
        f"{environment.get('onnxruntime', '')}. Speeds are over the float original: median, and "
        "the 10th and the 90th percentile.\n",
        "**Which kernels run.** All inputs have code 255 and all weights one code; 256 products "
        "are added, 256 x 256 sums, 1 thread. Sums of weights of 8 bits saturate without VNNI, of "
        "7 bits they do not.\n",
        "| | weights | sum | right sum | ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, name in names.items():
        for code, one in content[kind]["kernel"].items():
            lines.append(f"| {name} | {code} | {one['sum']} | {one['true']} | {one['ms']:.3f} |")
    lines += [
        "\n**`factorize digits --rank 8 --int8`**\n",
        "| | weights up to | `model.onnx` is | speed | top-1: original, chains, int8 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, name in names.items():
        one, quality = content[kind]["digits"], content[kind]["digits"]["quality"]
        steps = ("original", "rewritten", "int8")
        made = "float32" if one["left"] is None else "int8"
        top1 = ", ".join(f"{quality[step]:.2f}" for step in steps if step in quality)
        lines.append(
            f"| {name} | {content[kind]['largest']} | {made} | {_text(one['speedup'])} | {top1} |"
        )
    lines += [
        f"\n{names[kind]}: {told}" for kind in names for told in content[kind]["digits"]["told"]
    ]
    lines += [
        "\n**Never slower.** No chains; *all* is what `--int8 all` gives.\n",
        "| net | | all in int8 | layers in float | as delivered |",
        "| --- | --- | --- | --- | --- |",
    ]
    for net in content["no"]["nets"]:
        for kind, name in names.items():
            one = content[kind]["nets"][net]
            given = one["delivered"]
            shown = "float" if given == "float" else _text(given)
            lines.append(
                f"| {net} | {name} | {_text(one['all'])} | {len(one.get('left', {}))} | {shown} |"
            )
    (HERE / "no_vnni.md").write_text("\n".join(lines) + "\n")


def _text(speed: list[float]) -> str:
    return "{:.2f} ({:.2f}..{:.2f})".format(*speed)


if __name__ == "__main__":
    main()
