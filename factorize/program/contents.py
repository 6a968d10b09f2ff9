"""What a serialized program may say, before torch reads it.

``torch.export.load`` evaluates the sizes of a program as Python text, looks its operators up by
any path from ``torch`` on, and writes names into code that it compiles. So sizes must be
arithmetic, operators those of torch's tensors, and names names; all that a net does not need
(where its lines were in a source file, what its layers were called) is left out.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from typing import Any

_LONGEST = 2000  # characters of a name, nodes of an expression
_LARGEST = 2**64
_POWERS = 4  # in one expression, each up to _EXPONENT: towers of them are endless numbers
_EXPONENT = 8
_NAME = re.compile(r"[\w.:/+ \-]*")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(r"[a-z]{1,8}\d+|oo|int_oo|true|false")
_NUMBER = re.compile(r"-?[\d.e+-]{1,40}")
_SIZE = re.compile(r"L\['\w+'\](?:\['\w+'\]|\[\d+\])*\.(?:size|stride)\(\)\[\d+\]")
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|torchvision)\.(?!__)\w+\.[A-Za-z]\w*"
    r"|torch\.ops\.aten\.__(?:and|or|xor|lshift|rshift)__\.[A-Z]\w*"
    r"|torch\.ops\.higher_order\.(?:cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_(?:int|float|max|min|not|ite|sqrt|sum)"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(?:ceil|floor|trunc|sqrt)"
)
_READS_FILES = re.compile(r"torch\.ops\.aten\.from_file\.")
_POWER = {"Pow", "PowByNatural", "FloatPow"}
_WORDS = """
Symbol Integer Float Rational Add Mul Max Min Mod FloorDiv ModularIndexing CleanDiv CeilDiv
PythonMod Where IntTrueDiv FloatTrueDiv ToFloat TruncToInt TruncToFloat CeilToInt FloorToInt
RoundToInt Identity Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan
StrictGreaterThan GreaterThan And Or Not Abs floor ceiling
"""
_FUNCTIONS = _POWER | set(_WORDS.split())
_SYNTAX = (
    ast.Expression, ast.Load, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.Not, ast.And, ast.Or, ast.Eq, ast.NotEq,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.keyword, ast.Call, ast.Constant, ast.Name,
)  # fmt: skip
_CONTAINERS = {
    None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
    "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict",
}  # fmt: skip
_DEVICES = ("cuda", "mps", "xpu")
_FREE = ("as_string", "as_strings")  # values of arguments: torch quotes them where it writes code
_OBJECTS = ("as_custom_obj", "as_opaque_value", "custom_obj", "opaque_value", "custom_obj_values")


class RefusedError(ValueError):
    """What is said by a program that no honest one needs."""


def clean_program(text: bytes) -> bytes:
    """A program's JSON as far as it is needed to run it, on the CPU.

    Raises
    ------
    RefusedError
        It asks for what could run code, or for what is not there to be loaded.
    ValueError, RecursionError
        It is malformed.
    """
    whole = json.loads(text)
    if not isinstance(whole, dict) or not isinstance(whole.get("graph_module"), dict):
        raise ValueError("no program")
    guards = whole.pop("guards_code", None)
    graph_module = whole["graph_module"]
    # Calls of submodules tell how to take the program apart again, which nobody asks for.
    graph_module["module_call_graph"] = graph_module["module_call_graph"][:1]
    graph_module["treespec_namedtuple_fields"] = {}  # no container is of such a class
    signature = graph_module["module_call_graph"][0]["signature"]
    for key in ("in_spec", "out_spec"):
        _check_containers(json.loads(signature[key]))
    _check_keywords(json.loads(signature["in_spec"]))
    specs = {key: signature.pop(key) for key in ("in_spec", "out_spec")}
    ranges = whole.pop("range_constraints")
    for expression in ranges:
        check_expression(expression)
    cleaned = _cleaned(whole, "")
    cleaned["range_constraints"] = _cleaned(ranges, "range_constraints", named=False)
    cleaned["graph_module"]["module_call_graph"][0]["signature"] |= specs
    if guards is not None:
        cleaned["guards_code"] = [guard for guard in guards if _is_arithmetic(guard)]
    return json.dumps(cleaned).encode()


def clean_payloads(text: bytes) -> dict[str, Any]:
    """The list of an archive's tensors, on the CPU.

    Raises
    ------
    RefusedError
        One is to be unpickled.
    ValueError, RecursionError
        It is malformed.
    """
    whole = _cleaned(json.loads(text), "")
    for name, payload in whole["config"].items():
        if payload["use_pickle"] or not payload["tensor_meta"]:
            raise RefusedError(f"{name} is an object to unpickle, which could run any code")
    return whole["config"]


def check_expression(text: str) -> None:
    """Refuse a size that is no arithmetic of numbers and symbols.

    Raises
    ------
    RefusedError
        It is not.
    """
    if not _is_arithmetic(text):
        raise RefusedError(f"a size must be arithmetic, got {str(text)[:80]!r}")


def _is_arithmetic(text: Any) -> bool:
    if type(text) is not str or len(text) > 20 * _LONGEST:
        return False
    try:
        nodes = [*ast.walk(ast.parse(_SIZE.sub("s0", text), mode="eval"))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    named = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    words = {
        id(node.args[0]): _SYMBOL if node.func.id == "Symbol" else _NUMBER
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args
        and node.func.id in ("Symbol", "Float")
    }  # fmt: skip
    powers = [n for n in nodes if isinstance(n, ast.Call) and _function(n) in _POWER]
    return (
        len(nodes) <= _LONGEST
        and len(powers) <= _POWERS
        and all(_is_small(node.args[1:]) for node in powers)
        and all(_is_part(node, id(node) in named, words.get(id(node))) for node in nodes)
    )


def _function(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_part(node: ast.AST, called: bool, word: re.Pattern[str] | None) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS if called else bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return word is not None and bool(word.fullmatch(node.value))
        return isinstance(node.value, (bool, int, float)) and abs(node.value) < _LARGEST
    if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
        return False
    return isinstance(node, _SYNTAX)


def _is_small(exponent: list[ast.expr]) -> bool:
    """Whether there is an exponent, and it is a small number."""
    values = [n.value for one in exponent for n in ast.walk(one) if isinstance(n, ast.Constant)]
    return bool(values) and all(type(v) is int and v <= _EXPONENT for v in values)


def _check_containers(spec: Any) -> None:
    """Refuse inputs or outputs that are of classes: to know one is to import it."""
    waiting = [spec[1]]
    while waiting:
        one = waiting.pop()
        if one["type"] not in _CONTAINERS:
            raise RefusedError(
                f"its inputs or outputs are of the class {str(one['type'])[:80]}, which torch must "
                "know to load it: export it with dicts, lists or tuples instead"
            )
        if "__enum__" in (one["context"] or ""):
            raise RefusedError("its inputs or outputs are named by an enum, to be imported")
        waiting += one["children_spec"]


def _check_keywords(spec: Any) -> None:
    """Refuse names of keyword arguments that are none: torch writes them into code."""
    for name in json.loads(spec[1]["children_spec"][1]["context"]):
        _check_identifier(name)


def _check_identifier(name: Any) -> None:
    if type(name) is not str or not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise RefusedError(f"a name must be a name, got {str(name)[:80]!r}")


def _cleaned(value: Any, key: str, *, named: bool = True) -> Any:
    """A part of the JSON, checked; ``named``: whether its own keys are names."""
    if isinstance(value, dict):
        if value.keys() == {"type", "index"} and value["type"] in _DEVICES:
            return {"type": "cpu", "index": None}
        if named and not all(map(_NAME.fullmatch, value)):
            raise RefusedError("a name in it has characters that names do not have")
        if found := next((one for one in _OBJECTS if value.get(one)), None):
            raise RefusedError(f"it holds an object ({found}), which could run any code")
        return {k: {} if k == "metadata" else _cleaned(v, k) for k, v in value.items()}
    if isinstance(value, list):
        if key == "forward_arg_names":
            for one in value:
                _check_identifier(one)
        return [_cleaned(one, key) for one in value]
    if not isinstance(value, str) or key in _FREE:
        return value
    if key == "expr_str":
        check_expression(value)
    elif key in ("target", "as_operator"):
        if not _OPERATOR.fullmatch(value) or _READS_FILES.match(value):
            raise RefusedError(f"it calls {value[:80]}, which is no operator of torch's on tensors")
    elif key in ("name", "as_name") and value:
        _check_identifier(value)
    elif len(value) > _LONGEST or not _NAME.fullmatch(value):
        raise RefusedError(f"a name must be a name, got {value[:80]!r}")
    return value
