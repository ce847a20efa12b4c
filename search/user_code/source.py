"""The code that decides results, as a text that does not change when the code is reworded, reformatted or moved.

For a function or class, this is the syntax tree without docstrings, comments and annotations, together with everything
it refers to: the user's other functions and classes, constants, defaults and closures. Code of Python, PyTorch and
other installed packages is only named; for code that comes with prunefront, the version below stands in its place.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import inspect
import linecache
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search.user_code.blame import is_others

BUILT_IN = {
    "VGG9": 1, "accuracy": 1, "accuracy_of_logits": 1, "accuracy_of_probabilities": 1, "moved_and_mirrored": 1,
    "shift_and_flip": 1,
}  # fmt: skip
"""Name of what a built-in workload is made of -> version of its code: raised when what it computes changes."""
_OURS = ("spaces", "pruning", "search")
_SKIPPED = {"annotation", "returns", "type_comment", "kind", "ctx", "type_params"}
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LIBRARIES = ("builtins", "torch", "torchvision")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
_DEPTH = 8
"""How deep values are looked into."""


def code_of(things: Iterable[Any]) -> list[str]:
    """One text for each of these functions and objects, followed by the code of everything they refer to."""
    walk = _Walk()
    return [*(walk.root(thing) for thing in things), *sorted(set(walk.texts))]


def code_of_network(model: nn.Module) -> list[str]:
    """The code of all classes of a network, and what its modules hold besides tensors and submodules."""
    walk = _Walk(values=False)
    kept = []
    for module in model.modules():
        walk.seen[id(module)] = module
    for name, module in model.named_modules():
        walk.root(type(module))
        usual = type(module).__module__.partition(".")[0] in _LIBRARIES  # whose settings its text shows
        if held := _hooks_of(module) if usual else attributes_of(module):
            kept.append(f"{name}: {walk.visit(held)}")
    return [*kept, *sorted(set(walk.texts))]


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """What a module holds besides tensors, submodules and the settings every module has; its hooks included."""
    usual = vars(nn.Module())
    held = {name: value for name, value in vars(module).items() if name not in usual}
    return held | _hooks_of(module)


def _hooks_of(module: nn.Module) -> dict[str, Any]:
    return {name: [*vars(module)[name].values()] for name in _HOOKS if vars(module).get(name)}


class _Walk:
    """Follows references, visiting each once.

    Args:
        values: whether the numbers in tensors count.
    """

    def __init__(self, values: bool = True) -> None:
        self.texts: list[str] = []
        self.seen: dict[int, Any] = {}  # holds what it has seen, so that no address is used twice
        self._values = values

    def root(self, thing: Any) -> str:
        """Like `visit`, except that the code of installed packages counts."""
        bare = thing
        while isinstance(bare, functools.partial):
            bare = bare.func
        if isinstance(bare, (types.FunctionType, type)):
            self._named(bare, root=True)
        return self.visit(thing)

    def visit(self, thing: Any, depth: int = 0) -> str:
        """A short text that stands for a value; the code behind it is added to `texts`."""
        if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes, type(...), range, slice)):
            return repr(thing)
        if isinstance(thing, (Tensor, np.ndarray)):
            return _numbers(thing, self._values)
        if isinstance(thing, types.ModuleType):
            return "module"
        if isinstance(thing, functools.partial):
            called = (thing.func, thing.args, dict(sorted(thing.keywords.items())))
            return f"partial({', '.join(self.visit(part, depth) for part in called)})"
        if isinstance(thing, types.MethodType):
            return f"method({self.visit(thing.__func__, depth)}, {self.visit(thing.__self__, depth)})"
        if isinstance(thing, (staticmethod, classmethod, property)):
            inner = thing.fget if isinstance(thing, property) else thing.__func__
            return self.visit(inner, depth)
        if isinstance(thing, (types.FunctionType, type)):
            return self._named(thing)
        if isinstance(thing, (torch.dtype, torch.device, Path)):
            return str(thing)
        if depth >= _DEPTH:
            return type(thing).__qualname__
        if isinstance(thing, (tuple, list, set, frozenset)):
            parts = [self.visit(part, depth + 1) for part in thing]
            return f"({', '.join(sorted(parts) if isinstance(thing, (set, frozenset)) else parts)})"
        if isinstance(thing, dict):
            pairs = [f"{self.visit(k, depth + 1)}: {self.visit(v, depth + 1)}" for k, v in thing.items()]
            return f"{{{', '.join(sorted(pairs))}}}"
        if hasattr(thing, "__qualname__"):
            return thing.__qualname__
        return self._object(thing, depth)

    def _object(self, thing: Any, depth: int) -> str:
        """An instance: its class and attributes, and for a module its tensors and submodules."""
        name = self._named(type(thing))
        if id(thing) in self.seen:
            return name
        self.seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            state = [f"{key} {self.visit(value)}" for key, value in thing.state_dict().items()]
            kinds = [self._named(type(module)) for module in thing.modules()]
            held = self.visit(attributes_of(thing), depth + 1)
            return f"{name}({ADDRESS.sub('', repr(thing))} {state} {kinds} {held})"
        own = getattr(thing, "__dict__", None)
        return f"{name}({self.visit(own, depth + 1)})" if isinstance(own, dict) and _is_own(type(thing)) else name

    def _named(self, thing: Any, root: bool = False) -> str:
        name = thing.__qualname__
        if id(thing) in self.seen:
            return name
        self.seen[id(thing)] = thing
        package = (thing.__module__ or "").partition(".")[0]
        if package in _OURS:
            version = BUILT_IN.get(name)
            if version is not None:
                self.texts.append(f"{name} version {version}")
            return name
        if package in (*_LIBRARIES, *sys.stdlib_module_names) or not (root or _is_own(thing)):
            return name
        node = _definition(thing)
        place = len(self.texts)
        self.texts.append(name)
        code = f"{name} {_canonical(node) if node is not None else _bytecode(thing)}"
        if _is_own(thing):
            code += f" {sorted(self._references(thing, node))}"
        self.texts[place] = code
        return name

    def _references(self, thing: Any, node: ast.AST | None) -> Iterator[str]:
        if isinstance(thing, type):
            for base in thing.__mro__[1:]:
                yield self._named(base)
            around = vars(sys.modules.get(thing.__module__, types))
            for name in _class_level_names(node):
                if name in around:
                    yield f"{name} = {self.visit(around[name])}"
            for value in list(vars(thing).values()):
                if isinstance(value, (types.FunctionType, staticmethod, classmethod, property)):
                    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                    if isinstance(inner, types.FunctionType) and inner.__module__ == thing.__module__:
                        yield from self._of_function(inner)
            return
        yield from self._of_function(thing)

    def _of_function(self, function: types.FunctionType) -> Iterator[str]:
        function = inspect.unwrap(function)
        for name, value in _globals_of(function.__code__, function.__globals__):
            yield f"{name} = {self.visit(value)}"
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # empty yet
                continue
            if name != "__class__":
                yield f"{name} = {self.visit(value)}"
        yield self.visit([*(function.__defaults__ or ())])
        yield self.visit(dict(function.__kwdefaults__ or {}))


def _numbers(array: Tensor | np.ndarray, values: bool) -> str:
    """A digest of all values, or type and shape."""
    if not values:
        return f"{tuple(array.shape)} {array.dtype}"
    tensor = torch.as_tensor(array) if isinstance(array, Tensor) or array.dtype.kind in "biufc" else None
    if tensor is None or tensor.layout != torch.strided or tensor.is_meta:
        return f"{type(array).__name__} {array.dtype}"
    raw = tensor.detach().cpu().contiguous().flatten()
    content = raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(content).hexdigest()[:16]}"


def _globals_of(code: types.CodeType, around: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The global names that a function reads, with their values; for the user's modules, the attributes taken from
    them.
    """
    steps = list(dis.get_instructions(code))
    for number, step in enumerate(steps):
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME") or step.argval not in around:
            continue
        name, value = step.argval, around[step.argval]
        for after in steps[number + 1 :]:
            if not isinstance(value, types.ModuleType) or not _is_own_module(value):
                break
            if after.opname in ("LOAD_ATTR", "LOAD_METHOD") and hasattr(value, after.argval):
                name, value = f"{name}.{after.argval}", getattr(value, after.argval)
            elif after.opname != "CACHE":
                break
        yield name, value
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant, around)


def _is_own(thing: Any) -> bool:
    module = sys.modules.get(thing.__module__ or "")
    return module is None or _is_own_module(module)


def _is_own_module(module: types.ModuleType) -> bool:
    if module.__name__.partition(".")[0] in (*_OURS, *sys.stdlib_module_names):
        return False
    file = getattr(module, "__file__", None)
    return file is None or not is_others(file)


def _definition(thing: Any) -> _Definition | None:
    """The syntax tree of a function or class; None where there is no source."""
    if isinstance(thing, type):
        functions = [value for value in vars(thing).values() if isinstance(value, types.FunctionType)]
        lines = {f.__code__.co_firstlineno for f in functions if f.__module__ == thing.__module__}
        try:
            file = inspect.getsourcefile(thing)
        except (TypeError, OSError):
            return None
    else:
        thing = inspect.unwrap(thing)
        lines, file = {thing.__code__.co_firstlineno}, thing.__code__.co_filename
    tree = _tree(file)
    if tree is None:
        return None
    path = [part for part in thing.__qualname__.split(".") if part != "<locals>"]
    found = [node for node in _nodes_called(tree, path) if not lines or _holds(node, min(lines))]
    if isinstance(thing, type) or len(found) <= 1:
        return found[0] if found else None
    same = [node for node in found if _compiled_alike(node, thing.__code__)]
    return (same or found)[0]


def _tree(file: str | None) -> ast.Module | None:
    lines = linecache.getlines(file) if file else []
    return _parsed("".join(lines)) if lines else None


@functools.lru_cache(maxsize=64)
def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def _nodes_called(tree: ast.AST, path: list[str]) -> Iterator[_Definition]:
    """Definitions and lambdas of this qualified name."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, _Definition):
            yield from _nodes_called(node, path)
            continue
        called = "<lambda>" if isinstance(node, ast.Lambda) else node.name
        if called == path[0]:
            if len(path) == 1:
                yield node
            else:
                yield from _nodes_called(node, path[1:])
        if called == "<lambda>":
            yield from _nodes_called(node, path)


def _holds(node: _Definition, line: int) -> bool:
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    return first <= line <= (node.end_lineno or first) if isinstance(node, ast.ClassDef) else first == line


def _compiled_alike(node: _Definition, code: types.CodeType) -> bool:
    """Whether this is the right one of several lambdas on a line, judged by the columns recorded in its code object."""
    places = [place for place in code.co_positions() if None not in place and place[2:] != (0, 0)]
    begins, ends = {(line, column) for line, _, column, _ in places}, {(line, column) for _, line, _, column in places}
    first, last = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    return bool(begins) and first <= min(begins) and max(ends) <= last


def _class_level_names(node: ast.AST | None) -> set[str]:
    """Names that a class uses in its definition: bases, decorators, values of its attributes."""
    if not isinstance(node, ast.ClassDef):
        return set()
    names, pending = set(), [*node.bases, *node.decorator_list, *(k.value for k in node.keywords), *node.body]
    while pending:
        part = pending.pop()
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += [*part.decorator_list, *part.args.defaults, *(d for d in part.args.kw_defaults if d)]
            continue
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
            names.add(part.id)
        pending += ast.iter_child_nodes(part)
    return names


def _canonical(node: Any) -> str:
    """A syntax tree in one line, without what has no effect; the same for every Python version that has the syntax."""
    if isinstance(node, ast.AST):
        fields = [f"{key}={_canonical(value)}" for key, value in ast.iter_fields(node) if key not in _SKIPPED]
        return f"{type(node).__name__}({','.join(field for field in fields if not field.endswith(('=[]', '=None')))})"
    if isinstance(node, list):
        return f"[{','.join(_canonical(part) for part in node if not _is_text(part))}]"
    return repr(node)


def _is_text(node: Any) -> bool:
    """A docstring, or any other string that is a statement of its own."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _bytecode(thing: Any) -> str:
    """A stand-in for a function without source, and for the methods of a class without source."""
    if isinstance(thing, type):
        methods = {name: value for name, value in vars(thing).items() if isinstance(value, types.FunctionType)}
        return repr({name: _steps(method.__code__) for name, method in sorted(methods.items())})
    return repr(_steps(thing.__code__))


def _steps(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_steps(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants
