"""A model as a file can hold it: called with tensors alone, giving plain containers of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, Signature
from types import MethodType
from typing import Any

from torch import Tensor, nn

from factorize.errors import ExportError
from factorize.tensor.call import batch_size, call, input_on, model_on

_FROZEN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class PlainCall:
    """A model on the CPU that takes tensors alone, and how it is called.

    Attributes
    ----------
    model
        Shares its submodules and weights with the original; their names are the same.
    tensors
        The example's, by the name of the parameter of `forward`.
    by_name
        Whether they are keyword arguments.
    """

    model: nn.Module
    tensors: dict[str, Tensor]
    by_name: bool

    @property
    def samples(self) -> int:
        """The batch size of the example."""
        return batch_size(tuple(self.tensors.values()))

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return tensors in order as positional arguments and keyword arguments."""
        if self.by_name:
            return (), dict(zip(self.tensors, tensors, strict=True))
        return tuple(tensors), {}

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Call the model with tensors in order."""
        positional, named = self.arguments(tensors)
        return call(self.model, named or positional)


def plain_call(model: nn.Module, example_input: Any) -> PlainCall:
    """Freeze what an example input has beside tensors, and flatten what the model puts out.

    Numbers, texts, booleans and None among the arguments become a part of the model. An output
    of a class with named fields becomes a dict, which needs no class where it is loaded.

    Raises
    ------
    ExportError
        An argument is neither a tensor nor one of these, or none is a tensor.
    """
    model, example_input = model_on(model, "cpu"), input_on(example_input, "cpu")
    by_name = isinstance(example_input, Mapping)
    if by_name:
        given = dict(example_input)
    else:
        values = example_input if isinstance(example_input, tuple) else (example_input,)
        given = dict(zip(_parameters(model, len(values)), values, strict=True))
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(v, (Tensor, *_FROZEN)) for v in given.values()):
        raise ExportError(
            "export: every input must be a tensor, or a number, text, boolean or None that is "
            f"frozen, and one a tensor, got {', '.join(type(v).__name__ for v in given.values())}. "
            "Wrap the model in one whose forward takes tensors."
        )

    # A wrapping module would change the name of every layer, so the model's own call is replaced:
    # in a copy that shares all but its attributes. copy.copy asks the class, which may refuse.
    twin = type(model).__new__(type(model))
    twin.__dict__.update(model.__dict__)
    own = model.__dict__.get("forward") or MethodType(type(model).forward, twin)
    twin.__dict__["forward"] = _forward(own, given, by_name)
    return PlainCall(twin, tensors, by_name)


def _forward(own: Callable[..., Any], given: Mapping[str, Any], by_name: bool) -> Any:
    """Make the `forward` that takes the tensors alone."""
    names = [name for name, value in given.items() if isinstance(value, Tensor)]

    def forward(*positional: Any, **named: Any) -> Any:
        if by_name:
            return plain(own(**{**given, **named}))
        values = {**given, **dict(zip(names, positional, strict=True))}
        return plain(own(*values.values()))

    # torch.export asks for the names of the arguments.
    kind = Parameter.KEYWORD_ONLY if by_name else Parameter.POSITIONAL_ONLY
    forward.__signature__ = Signature([Parameter(name, kind) for name in names])  # pyright: ignore[reportFunctionMemberAccess]
    return forward


def plain(value: Any) -> Any:
    """Return an output with dicts in the place of classes with named fields, without None."""
    named = None
    if isinstance(value, Mapping):
        named = value
    elif is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        named = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if named is not None:
        return {key: plain(one) for key, one in named.items() if one is not None}
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple
        return kind(plain(one) for one in value if one is not None)
    return value


def _parameters(model: nn.Module, count: int) -> list[str]:
    """Names of the first parameters of `forward`, as many as there are arguments."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # it is not a Python function
        parameters = ()
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    names = [one.name for one in parameters if one.kind in kinds][:count]
    return names + [f"input_{i}" if count > 1 else "input" for i in range(len(names), count)]
