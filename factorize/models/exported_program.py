"""An exported program (.pt2): its twin, in which convolutions are modules."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from factorize.errors import ModelLoadError
from factorize.models.door import LoadedModel, Source
from factorize.models.model_file import check_tensors
from factorize.program import check_twin, example_of, is_program, make_twin, read_program

OPTIONS: tuple[str, ...] = ()


def takes(source: Source) -> bool:
    """Whether it is an archive of ``torch.export.save``, whatever its name."""
    return source.path.is_file() and is_program(source.path)


def load(source: Source) -> LoadedModel:
    """Make the twin; what it computes is checked once the size of an input is known."""
    path = source.path
    twin, notes = make_twin(read_program(path, trust=source.trust_pickle), path)
    check_tensors(twin.state_dict(), path)
    given, batch, free = example_of(twin)
    example = shape = None
    only = next(iter(given.values())) if len(given) == 1 else None
    if isinstance(only, Tensor) and 3 <= only.ndim <= 5 and only.is_floating_point() and batch < 2:
        shape = tuple(only.shape[1:])
    elif not given:
        raise ModelLoadError(
            f"{path}: the program must take an input, and it takes none. Export it with one."
        )
    else:
        example = given if len(given) > 1 or not isinstance(only, Tensor) else only
    if batch > 1:
        told = f"its batch must be {batch} or more" if free else f"its batch of {batch} is fixed"
        notes = (*notes, told)
    return LoadedModel(
        twin, f"exported program {path.name}", shape, notes=notes, example=example,
        check=partial(check_twin, twin),
    )  # fmt: skip
