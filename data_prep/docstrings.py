"""Documentation out of Python source: signatures and docstrings, read with `ast` and without running anything.

Compiled functions have theirs attached by calls, `add_docstr` in torch and `add_newdoc` in numpy; the constant text in
these calls is documentation, too.
"""

import ast
import inspect
import re
import string
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

LONGEST_SIGNATURE = 200


def documentation(module: str, source: str) -> list[tuple[str, str]]:
    """Heading and cleaned text of each piece of documentation in a module's source, in the order of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 2 escapes in other people's strings.
        tree = ast.parse(source)
    constants: dict[str, Any] = {}
    entries = [(module, ast.get_docstring(tree) or "")]
    for node in statements(tree.body):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = fold(node.value, constants)
        entries += definition(node, module) or added(node, module, constants)
    if module == "pydoc_data.topics":
        entries = list((constants.get("topics") or {}).items())
    return [(heading, re.sub(r"\n{3,}", "\n\n", text).strip()) for heading, text in entries if text and text.strip()]


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and of the branches in it."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from statements(node.body)
            yield from statements(getattr(node, "orelse", []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def definition(node: ast.stmt, scope: str) -> list[tuple[str, str]]:
    """A function's or class's signature and docstring, and those of a class's members."""
    name = getattr(node, "name", "")
    if name.startswith("_") and not name.endswith("__"):
        return []  # As `help()` does, leave out what is private.
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        method = scope.startswith("class ")
        name = f"{scope.removeprefix('class ')}.{node.name}"
        if not any("property" in decorator for decorator in decorators):
            name += signature(node, bound=method and "staticmethod" not in decorators)
        return [(name, ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        members = list(statements(node.body))
        scope = f"class {scope.removeprefix('class ')}.{node.name}"
        maker = [member for member in members if isinstance(member, ast.FunctionDef) and member.name == "__init__"]
        heading = scope + (signature(maker[0], bound=True) if maker else "")
        return [(heading, ast.get_docstring(node) or "")] + [
            entry for member in members for entry in definition(member, scope)
        ]
    return []


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
    """The parameters as a caller sees them: no annotations, no self."""
    parameters = node.args
    for parameter in ast.walk(parameters):
        if isinstance(parameter, ast.arg):
            parameter.annotation = None
    text = ast.unparse(parameters)
    if bound:
        text = re.sub(r"^(self|cls)(, (/, )?|$)", "", text)
    return f"({text})" if len(text) <= LONGEST_SIGNATURE else "(...)"


def added(node: ast.stmt, module: str, constants: dict[str, Any]) -> list[tuple[str, str]]:
    """Documentation that a call attaches to compiled functions."""
    call = getattr(node, "value", None)
    if not isinstance(call, ast.Call):
        return []
    function = ast.unparse(call.func).rpartition(".")[2].lstrip("_")
    match function, [fold(argument, constants) for argument in call.args]:
        case "add_docstr_all", [str(method), str(text)]:
            return [headed(f"torch.Tensor.{method}", text)]
        case "add_docstr", [_, str(text)]:
            target = f"{module}.{ast.unparse(node.targets[0])}" if isinstance(node, ast.Assign) else ""
            return [headed(target or re.sub(r"\b_C\.(_\w+\.)*", "", ast.unparse(call.args[0])), text)]
        case "add_newdoc", [str(place), str(name), str(text), *_]:
            return [(f"{place}.{name}", without_signature(text))]
        case "add_newdoc", [str(place), str(name), (str(attribute), str(text)), *_]:
            return [(f"{place}.{name}.{attribute}", without_signature(text))]
    return []


def headed(name: str, text: str) -> tuple[str, str]:
    """Heading and text of one of torch's docstrings, most of which start with a line of signature."""
    text = inspect.cleandoc(text)
    first = re.match(rf"[\w.]*\b{re.escape(name.rpartition('.')[2])}(\(.*)\n", text)
    return (name + first[1], text[first.end() :]) if first else (name, text)


def without_signature(text: str) -> str:
    """One of numpy's docstrings without the signature for `inspect`, which ends in a line of two dashes."""
    return re.sub(r"\A[\w.]+\(.*?\)\n--\n", "", inspect.cleandoc(text), flags=re.DOTALL)


class Lenient(string.Formatter):
    """Fills a template with what is known and leaves out what is not."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        return kwargs.get(key) or ""


def fold(node: ast.expr, constants: dict[str, Any]) -> Any:
    """The value of literals, named constants, `+`, `.format` and torch's two helpers; None for any other expression."""
    again = partial(fold, constants=constants)
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return constants.get(name)
        case ast.Tuple(elements):
            return tuple(map(again, elements))
        case ast.Dict(keys, values):
            return {again(key): again(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.Subscript(container, key):
            found = again(container)
            return found.get(again(key)) if isinstance(found, dict) else None
        case ast.JoinedStr(parts):
            values = [again(part.value if isinstance(part, ast.FormattedValue) else part) for part in parts]
            return "".join(value for value in values if isinstance(value, str))
        case ast.BinOp(left, ast.Add(), right):
            first, second = again(left), again(right)
            return first + second if isinstance(first, str) and isinstance(second, str) else None
        case ast.Call(ast.Attribute(template, "format"), _, keywords):
            return fill(again(template), [(keyword.arg, again(keyword.value)) for keyword in keywords])
        case ast.Call(ast.Name("parse_kwargs"), [text]):
            sections = [section.strip() for section in re.split(r"\n {4}(?! )", str(again(text) or ""))]
            return {section.split(" ")[0]: section for section in sections if section}
        case ast.Call(ast.Name("merge_dicts"), arguments):
            return {
                name: value for part in map(again, arguments) if isinstance(part, dict) for name, value in part.items()
            }
    return None


def fill(template: Any, keywords: list[tuple[str | None, Any]]) -> str | None:
    """`template.format` with these keywords; those without a name are dictionaries of more."""
    if not isinstance(template, str):
        return None
    known: dict[str, Any] = {}
    for name, value in keywords:
        known |= {name: value} if name else value if isinstance(value, dict) else {}
    try:
        return Lenient().vformat(template, (), known)
    except (ValueError, LookupError, AttributeError):
        return template
