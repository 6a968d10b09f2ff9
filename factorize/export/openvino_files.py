"""``model.onnx`` in OpenVINO's own form."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from factorize.errors import ExportError
from factorize.system.imports import brief

OPENVINO_FILES = ("model.xml", "model.bin")


def check_openvino() -> None:
    """Raise ExportError where OpenVINO is not installed."""
    if find_spec("openvino") is None:
        raise ExportError(
            "--openvino-xml: needs the package openvino, found none: pip install "
            "'factorize[openvino]'."
        )


def write_openvino(onnx_file: Path) -> None:
    """Write ``.xml`` and ``.bin`` beside an ONNX file, its weights as they are there.

    Raises
    ------
    ExportError
        OpenVINO does not take the file.
    """
    import openvino

    try:
        openvino.save_model(
            openvino.convert_model(onnx_file), onnx_file.with_suffix(".xml"), compress_to_fp16=False
        )
    except Exception as error:  # of whatever node
        for name in OPENVINO_FILES:
            (onnx_file.parent / name).unlink(missing_ok=True)
        raise ExportError(
            f"model.xml: OpenVINO does not take model.onnx, {brief(error)}"
        ) from error
