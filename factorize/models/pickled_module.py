"""A file with a whole pickled module; beside an ``--arch`` it is only a file with weights."""

from __future__ import annotations

from torch import nn

from factorize.models import architectures, recognition
from factorize.models.door import LoadedModel, Source
from factorize.models.modules import HALF, computes_in, sound

OPTIONS: tuple[str, ...] = ("key",)


def takes(source: Source) -> bool:
    """Whether the file holds a module, and no option asks for more than that."""
    if source.arch is not None or source.arch_args or source.weights is not None:
        return False  # unread: it is a file with weights, whose door knows what goes with it
    return isinstance(source.checkpoint.content, nn.Module)


def load(source: Source) -> LoadedModel:
    """Take the module as it is; of torchvision's, say what is known about its input."""
    content, notes = source.checkpoint.content, source.checkpoint.notes
    assert isinstance(content, nn.Module)
    module = sound(content, source.path)
    tensors = [*module.parameters(), *module.buffers()]
    if not HALF.isdisjoint(tensor.dtype for tensor in tensors):
        dtype, told = computes_in(tensors)
        module.to(dtype)
        notes = (*notes, *told)
    arch = f"pickled module {type(module).__name__}"
    if not type(module).__module__.startswith("torchvision.models."):
        return LoadedModel(module, arch, notes=notes)
    tensors = dict(module.named_parameters()) | module.state_dict()
    fitting = recognition.find_fitting(architectures.shapes_of(tensors))
    if len(fitting) != 1:
        return LoadedModel(module, arch, notes=notes)
    ((entry, arguments),) = fitting
    shape, preprocessing = architectures.input_of(entry, None, arguments.get("image_size"))
    note = f"its weights are shaped as those of {recognition.described(entry, arguments)}"
    return LoadedModel(module, arch, shape, preprocessing, (*notes, note))
