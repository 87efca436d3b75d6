"""The symbolic expressions of an archive: read as a grammar, because torch gives their text to `eval`.

    Symbol('s77', positive=True, integer=True) · Integer(2) · Add(…) · Mul(…) · FloorDiv(…) · Max(…) · 2*s0 + 1 · …

What passes is small in size and in value: no literal, power or length in it can make a number that takes long to
compute. It does not know what an expression measures.
"""

import ast
import re
from collections.abc import Callable

from service.errors import UnsafeArchive

MAX_CHARACTERS = 4000
MAX_POWER = 8  # all nested exponents multiplied
MAX_EXTREMA = 12  # arguments of Max and Min, which sympy compares pair by pair
_SYMBOL = re.compile(r"(s|u|zf|zuf)[0-9]{1,6}")
_RANGE_NAME = re.compile(r"[s0-9(][s0-9 +*/()-]{0,199}")  # of a derived size: 2*s77
_FLOAT = re.compile(r"-?[0-9]{1,12}(\.[0-9]{0,24})?(e-[0-9]{1,2})?")
_ASSUMPTIONS = {"positive", "nonnegative", "integer", "real", "finite"}
_ARITHMETIC = {"Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv"}
_ROUNDING = {"ToFloat", "FloatTrueDiv", "TruncToInt", "TruncToFloat", "FloorToInt", "CeilToInt", "RoundToInt"}
_RELATIONS = {"Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"}
_LOGIC = {"And", "Or", "Not"}
_FUNCTIONS = _ARITHMETIC | _ROUNDING | _RELATIONS | _LOGIC
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv)


def checked_expression(text: str) -> str:
    """Return a symbolic expression as its grammar reads it.

    Raises:
        UnsafeArchive: It is anything but symbols, numbers and arithmetic on them.
    """
    if len(text) > MAX_CHARACTERS:
        raise UnsafeArchive(f"a symbolic expression has {len(text)} characters and at most {MAX_CHARACTERS} are read")
    try:
        tree = ast.parse(text, mode="eval").body
        _check(tree, MAX_POWER)
        return ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnsafeArchive(
            f"the symbolic expression {text[:80]!r} is not arithmetic on symbols and whole numbers, and torch would "
            "run it as Python; export the network again"
        ) from error


def is_symbol(name: str) -> bool:
    """Tell whether a name is one that torch gives to a size or number."""
    return _SYMBOL.fullmatch(name) is not None


def names_range(name: str) -> bool:
    """Tell whether a name is a symbol's or a derived size's, as the ranges of an archive list them."""
    return is_symbol(name) or _RANGE_NAME.fullmatch(name) is not None


def _check(node: ast.expr, power: int) -> None:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            _check_call(name, node, power)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            _check(left, power)
            _check(right, power)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            _check(inner, power)
        case ast.Name(id=name):
            _require(is_symbol(name))
        case _:
            _require(node is not None and _is_integer(node))


def _check_call(name: str, call: ast.Call, power: int) -> None:
    if name in _LITERALS:
        _require(_LITERALS[name](call))
        return
    _require(not call.keywords and bool(call.args))
    if name in ("Pow", "FloatPow"):
        _require(len(call.args) == 2)
        exponent = _exponent(call.args[1])
        _require(0 < exponent <= power)
        _check(call.args[0], int(power // max(exponent, 1)))
    else:
        _require(name in _FUNCTIONS and len(call.args) <= (MAX_EXTREMA if name in ("Max", "Min") else MAX_CHARACTERS))
        for argument in call.args:
            _check(argument, power)


def _exponent(node: ast.expr) -> float:
    """Return a literal exponent, 0 for anything else."""
    match node:
        case ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int(value))], keywords=[]):
            return value
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(value)), *_]) if _is_float(node):
            return float(value)
        case _:
            return 0


def _is_integer(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1 << 63


def _are_integers(call: ast.Call) -> bool:
    return not call.keywords and all(map(_is_integer, call.args))


def _is_symbol_call(call: ast.Call) -> bool:
    match call.args:
        case [ast.Constant(value=str(name))] if is_symbol(name):
            return all(
                keyword.arg in _ASSUMPTIONS and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                for keyword in call.keywords
            )
        case _:
            return False


def _is_float(call: ast.Call) -> bool:
    match call.args, call.keywords:
        case [ast.Constant(value=str(text))], [ast.keyword(arg="precision", value=ast.Constant(value=53))]:
            return _FLOAT.fullmatch(text) is not None
        case _:
            return False


_LITERALS: dict[str, Callable[[ast.Call], bool]] = {
    "Symbol": _is_symbol_call,
    "Float": _is_float,
    "Integer": lambda call: len(call.args) == 1 and _are_integers(call),
    "Rational": lambda call: len(call.args) == 2 and _are_integers(call),
}


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError
