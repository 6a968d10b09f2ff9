"""Write the built-in example as an ONNX file, which is what the README's second example takes."""

from __future__ import annotations

import sys

import torch

from factorize import export_onnx
from factorize.models.digits import load_digits_model


def main() -> None:
    """Write to the file that is named, or digits.onnx."""
    path = (sys.argv[1:] or ["digits.onnx"])[0]
    check = export_onnx(load_digits_model(), torch.zeros(1, 1, 8, 8), path, force=True)
    print(f"{path}: opset {check.opset}, {sum(check.nodes.values())} nodes, {check.input_sizes}")


if __name__ == "__main__":
    main()
