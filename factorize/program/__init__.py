"""Exported programs (.pt2): the file that a net came in, read safely, and its twin."""

from factorize.program.archive import is_program, read_program
from factorize.program.check_twin import check_twin, example_of
from factorize.program.layers import call_of
from factorize.program.make_twin import make_twin
from factorize.program.twin import LayerCall, ProgramTwin

__all__ = [
    "LayerCall",
    "ProgramTwin",
    "call_of",
    "check_twin",
    "example_of",
    "is_program",
    "make_twin",
    "read_program",
]
