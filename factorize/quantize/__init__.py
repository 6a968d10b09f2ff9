"""Static int8: a net's layers rounded to integers, each fitted to what the ones before it give."""

from factorize.quantize.made_up_codes import as_integers
from factorize.quantize.quantize_onnx import Int8Check, quantize_onnx
from factorize.quantize.rows import rows_in
from factorize.quantize.saturation import LARGEST, largest_code
from factorize.quantize.spare import Spare

__all__ = [
    "LARGEST", "Int8Check", "Spare", "as_integers", "largest_code", "quantize_onnx", "rows_in",
]  # fmt: skip
