"""Writes the types of ``sandbox_agent.sync``, which are made from those of the async SDK.

python scripts/sync_stub.py            writes src/sandbox_agent/sync/__init__.pyi
python scripts/sync_stub.py --check    fails if that file is not what it would write
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import sandbox_agent
from sandbox_agent import sync

STUB = Path(__file__).parents[1] / "src/sandbox_agent/sync/__init__.pyi"
CLASSES = (
    "Session",
    "Turn",
    "ServerSessions",
    "Files",
    "FolderConfig",
    "ProcessTerminal",
    "Processes",
    "SandboxAgent",
)
ALIASES = {"SandboxAgentClient": "SandboxAgent"}
# Results that are iterated over, or waited for.
ITERATORS = {"AsyncGenerator", "AsyncIterator", "Viewer"}
AWAITED = {"Awaitable", "AwaitableContext", "Coroutine"}
HEAD = '''"""The types of the SDK without async, written by scripts/sync_stub.py."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar, overload

'''
ITERATOR = '''
_T = TypeVar("_T")

class EventIterator(Iterator[_T], Generic[_T]):
    """Iterates over what an async iterator yields. Close it, or read it to its end."""

    def __next__(self) -> _T: ...
    def close(self) -> None:
        """End the iteration."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

'''
CONTEXT = """    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
"""


class _Sync(ast.NodeTransformer):
    """Replaces the types of async results, and names that are private to a module."""

    def __init__(self, module: ModuleType) -> None:
        self._body = ast.parse(inspect.getsource(module)).body

    def _value(self, name: str) -> ast.expr:
        return next(
            node.value
            for node in self._body
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value is not None
        )

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in ITERATORS:
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            return ast.Subscript(ast.Name("EventIterator"), first, ast.Load())
        if isinstance(node.value, ast.Name) and node.value.id in AWAITED:
            return node.slice.elts[-1] if isinstance(node.slice, ast.Tuple) else node.slice
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id.startswith("_"):
            return self.visit(self._value(node.id))
        return ast.parse("EventIterator[SessionEvent]", mode="eval").body if node.id == "Viewer" else node


class Stub:
    """Collects the text of the stub, and the names that it needs from elsewhere."""

    def __init__(self) -> None:
        self._imports: dict[str, set[str]] = {}
        self._modules: set[str] = set()

    def text(self) -> str:
        """Return the stub."""
        classes = [self._class(name) for name in CLASSES]
        classes += [f"{alias} = {name}\n" for alias, name in ALIASES.items()]
        for name in sorted(set(sandbox_agent.__all__) - {*CLASSES, *ALIASES, "__version__"}):
            self._imports.setdefault("sandbox_agent", set()).add(f"{name} as {name}")
        lines = [
            f"from {module} import {', '.join(sorted(names))}" for module, names in self._imports.items()
        ]
        lines += [f"import {module}" for module in self._modules]
        listed = ", ".join(f'"{name}"' for name in sync.__all__)
        text = f"{HEAD}{chr(10).join(sorted(lines))}\n\n__all__ = [{listed}]\n__version__: str\n{ITERATOR}"
        return _formatted(text + "\n".join(classes))

    def _class(self, name: str) -> str:
        source = getattr(sandbox_agent, name)
        parts = [
            f"class {name}:",
            f'    """{inspect.getdoc(source)}"""'.replace("\n", "\n    ").replace("\n    \n", "\n\n"),
        ]
        done: set[str] = set()
        for owner in source.__mro__:
            if not owner.__module__.startswith("sandbox_agent."):
                continue
            module = importlib.import_module(owner.__module__)
            for member, code in self._members(module, owner.__name__):
                key = member.partition(".")[0]
                if key not in done or member != key:
                    parts.append(code)
                done.add(key)
        if hasattr(source, "__aenter__"):
            parts.append(CONTEXT)
        if hasattr(source, "__aiter__"):
            item = "bytes" if name == "ProcessTerminal" else "SessionEvent"
            own = hasattr(source, "__anext__")
            parts.append(f"    def __iter__(self) -> {'Self' if own else f'EventIterator[{item}]'}: ...")
            if own:
                parts.append(f"    def __next__(self) -> {item}: ...")
        if hasattr(source, "aclose"):
            parts.append(
                '    def close(self) -> None:\n        """Stop the iteration; the turn continues."""'
            )
        if hasattr(source, "__await__"):
            parts.append('    def wait(self) -> PromptResponse:\n        """Wait for the end of the turn."""')
        return "\n".join(parts) + "\n"

    def _members(self, module: ModuleType, name: str) -> Iterator[tuple[str, str]]:
        tree = ast.parse(inspect.getsource(module))
        [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        overloaded: dict[str, int] = {}
        docs = {
            node.name: ast.get_docstring(node)
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name == "__init__":
                yield from self._attributes(module, node)
            if node.name.startswith("_") or node.name == "aclose":
                continue
            decorators = [ast.unparse(one) for one in node.decorator_list]
            suffix = ".setter" if any(one.endswith(".setter") for one in decorators) else ""
            if "overload" in decorators:
                overloaded[node.name] = overloaded.get(node.name, 0) + 1
                suffix = f".overload{overloaded[node.name]}"
            elif node.name in overloaded:
                continue  # its overloads have been written
            # The last definition is the implementation, which says what all overloads do.
            doc = docs[node.name] if "overload" in decorators else ast.get_docstring(node)
            yield node.name + suffix, self._function(module, node, doc)

    def _attributes(
        self, module: ModuleType, init: ast.FunctionDef | ast.AsyncFunctionDef
    ) -> Iterator[tuple[str, str]]:
        for node in ast.walk(init):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Attribute):
                continue
            name = node.target.attr
            if not name.startswith("_"):
                result = self._type(module, node.annotation)
                yield name, f"    @property\n    def {name}(self) -> {result}: ..."

    def _function(
        self, module: ModuleType, node: ast.FunctionDef | ast.AsyncFunctionDef, doc: str | None
    ) -> str:
        arguments = node.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.kwarg]:
            if argument is not None and argument.annotation is not None:
                self._need(module, argument.annotation)
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is not None:
                self._need(module, default)
        result = "None" if node.returns is None else self._type(module, node.returns)
        names = [ast.unparse(one) for one in node.decorator_list]
        # At run time, keywords(...) shows what Unpack says to type checkers.
        decorators = "".join(f"    @{name}\n" for name in names if not name.startswith("keywords("))
        if "asynccontextmanager" in decorators:
            self._modules.add("contextlib")
            decorators = "    @contextlib.contextmanager\n"
            result = result.replace("EventIterator", "Generator", 1)
        text = (
            "..."
            if doc is None
            else '"""' + doc.replace("\n", "\n        ").replace("\n        \n", "\n\n") + '"""'
        )
        return f"{decorators}    def {node.name}({ast.unparse(arguments)}) -> {result}:\n        {text}\n"

    def _type(self, module: ModuleType, annotation: ast.expr) -> str:
        node = _Sync(module).visit(ast.parse(ast.unparse(annotation), mode="eval").body)
        self._need(module, node)
        return ast.unparse(node)

    def _need(self, module: ModuleType, node: ast.AST) -> None:
        """Import the names in an expression from where the module has them."""
        for each in ast.walk(node):
            if not isinstance(each, ast.Name) or each.id in {*sync.__all__, "Self", *dir(builtins)}:
                continue
            if inspect.ismodule(getattr(module, each.id, None)):
                self._modules.add(each.id)
            else:
                self._imports.setdefault(_home(module, each.id), set()).add(each.id)


def _home(module: ModuleType, name: str) -> str:
    """Return the module from which a module has a name."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            return node.module
    return module.__name__


def _formatted(text: str) -> str:
    command = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", str(STUB), "-"]
    fixed = subprocess.run(
        [*command, "check", "-q", "--fix-only", "--select", "I", *name],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return subprocess.run(
        [*command, "format", *name], input=fixed.stdout, capture_output=True, text=True, check=True
    ).stdout


def main() -> None:
    """Write the stub, or compare it."""
    text = Stub().text()
    if "--check" not in sys.argv:
        STUB.write_text(text)
    elif STUB.read_text() != text:
        sys.exit(
            "the types of sandbox_agent.sync are not those of the SDK: run 'python scripts/sync_stub.py'"
        )


if __name__ == "__main__":
    main()
