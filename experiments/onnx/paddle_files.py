"""ONNX files that PaddlePaddle itself writes, of its own vision models with random weights.

    python -m venv paddle && paddle/bin/pip install paddlepaddle paddle2onnx packaging
    paddle/bin/python experiments/onnx/paddle_files.py FOLDER
    PYTHONPATH=. python scripts/check_onnx.py --found FOLDER/*.onnx

paddle2onnx folds constants by Polygraphy, which it installs itself.
"""

import sys
from pathlib import Path

import paddle
from paddle.vision import models

NETS = ("resnet18", "mobilenet_v3_small")


def main() -> None:
    """Write a file for each net."""
    for name in NETS:
        paddle.seed(0)
        net = getattr(models, name)(pretrained=False)
        net.eval()
        x = paddle.static.InputSpec([None, 3, 96, 96], "float32", "x")
        path = str(Path(sys.argv[1], f"paddle_{name}"))
        paddle.onnx.export(net, path, input_spec=[x], opset_version=11)


if __name__ == "__main__":
    main()
