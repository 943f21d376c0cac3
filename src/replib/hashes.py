"""What is computed, as a hash: the code that a notebook or a training reaches, by its meaning.

Two pieces of code have one hash when they compute the same in the same steps. Comments,
docstrings, annotations, messages of errors, the names of modules and of definitions, and where a
definition stands do not count. A definition counts when the code reaches it: a notebook that calls
a function depends on it, on what that calls, and so on; of the rest of a module only on the
statements that run when it is imported.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

SRC = Path(__file__).parents[1]
Definition = tuple[str, str]  # (module, name); the name "" is all that importing the module runs
_LEFT_OUT = {"ctx", "type_comment", "type_params", "kind", "returns", "annotation"}


def notebook_hash(notebook: str) -> str:
    """sha256 of what a notebook's code cells compute, whatever its text and outputs."""
    return _sha256(_project().written(_code(notebook))[0])


def library_hash(notebook: str, *modules: str) -> str:
    """sha256 of the definitions of this project that a notebook reaches, and of whole `modules`,
    which it loads by name."""
    return code_hash(_code(notebook, modules))


def code_hash(code: str, leave: Sequence[str] = ()) -> str:
    """sha256 of the definitions of this project that some code reaches. `leave` names definitions,
    each as `module.name`, that are not followed: what a training only stores with, or what its card
    holds by itself."""
    project = _project()
    found = {one: project.definition(one) for one in project.reached(code, leave)}
    own = {one: _sha256(text) for one, (text, _) in found.items()}
    # With what each one reads: two readers that exchange what they read compute something else.
    whole = {
        " ".join([own[one], *(own.get(other, "-") for other in reads)])
        for one, (_, reads) in found.items()
    }
    return _sha256("\n".join(sorted(whole)))


def pins_hash(requirements: Path) -> str | None:
    """sha256 of the packages that a requirements file pins, in any order; None without the file."""
    if not requirements.is_file():
        return None
    lines = (line.split("#")[0].strip() for line in requirements.read_text().splitlines())
    return _sha256("\n".join(sorted(filter(None, lines))))


def file_hash(path: Path) -> str:
    """sha256 of a file; of a text, whatever its line ends, which a checkout or an editor may turn
    into those of Windows."""
    content = path.read_bytes()
    text = content if b"\0" in content else content.replace(b"\r\n", b"\n")
    return hashlib.sha256(text).hexdigest()


def library_files(notebook: str, *modules: str) -> list[Path]:
    """The files of this project that hold what a notebook, with these modules, reaches."""
    project = _project()
    return sorted({project.paths[name] for name, _ in project.reached(_code(notebook, modules))})


def reached(notebook: str) -> set[str]:
    """What a notebook reaches of this project, by names such as `replib.metrics.proportion`."""
    found = _project().reached(_code(notebook))
    return {f"{module}.{name}" for module, name in found if name}


def _code(notebook: str, modules: Sequence[str] = ()) -> str:
    """The code cells of a notebook that parse, and the modules that it loads by name."""
    cells = json.loads(notebook)["cells"]
    texts = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    known = [text for text in texts if _parse(text) is not None]
    return "\n".join([*known, *(f"({name!r},)" for name in modules)])


def _parse(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last: nested too deeply
        return None  # the run will say so


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- the modules ----------------------------------------------------------------------------------


def _project() -> "_Project":
    paths = sorted(SRC.glob("*/**/*.py"))
    return _read(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths))


@lru_cache(maxsize=1)
def _read(stamps: tuple[tuple[Path, int, int], ...]) -> "_Project":
    return _Project([path for path, *_ in stamps])


class _Module:
    """What the names of one file mean: imports, definitions, and the statements beside them."""

    def __init__(self, code: str, name: str = "") -> None:
        self.name = name  # empty: no module of the project
        self.imports: dict[str, tuple[str, str]] = {}  # name here -> (module, name there or "")
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.beside: list[ast.stmt] = []
        tree = _parse(code)
        self.body = tree.body if tree else []
        for part in (part for node in self.body for part in ast.walk(node)):  # at any depth
            match part:
                case ast.Import(names=names):
                    for one in names:
                        top = one.name.split(".")[0]
                        self.imports[one.asname or top] = (one.name if one.asname else top, "")
                case ast.ImportFrom(module=str(module), names=names):
                    self.imports |= {one.asname or one.name: (module, one.name) for one in names}
        for node in self.body:
            names = _defined(node)
            for name in names:
                self.definitions.setdefault(name, []).append(node)
            if not names and not _is_silent(node):
                self.beside.append(node)


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines, if it is a definition."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign(targets=targets):
            parts = [part for target in targets for part in ast.walk(target)]
            return [part.id for part in parts if isinstance(part, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _is_silent(node: ast.stmt) -> bool:
    """Imports, docstrings, `if __name__ == ...`: nothing that a number depends on."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
    return False


class _Project:
    """All modules under `SRC`, and what each definition says and reads."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = {_module_name(path): path for path in paths}
        self._modules: dict[str, _Module] = {}
        self._definitions: dict[Definition, tuple[str, list[Definition]]] = {}

    def module(self, name: str) -> _Module:
        if name not in self._modules:
            self._modules[name] = _Module(self.paths[name].read_text(encoding="utf-8"), name)
        return self._modules[name]

    def definition(self, one: Definition) -> tuple[str, list[Definition]]:
        """What a definition says, by its meaning, and the definitions that it reads, in order."""
        if one not in self._definitions:
            module = self.module(one[0])
            body = module.definitions[one[1]] if one[1] else module.beside
            text, reads = _Writer(self, module).write(body)
            places = [_defined(node).index(one[1]) for node in body if one[1]]
            self._definitions[one] = f"{places} {text}", reads  # of `a, b = ...` which is meant
        return self._definitions[one]

    def written(self, code: str) -> tuple[str, list[Definition]]:
        """The same of some code outside the project."""
        module = _Module(code)
        return _Writer(self, module).write(module.body)

    def reached(self, code: str, leave: Sequence[str] = ()) -> set[Definition]:
        left = {tuple(name.rsplit(".", 1)) for name in leave}
        todo, found = self.written(code)[1], set()
        while todo:
            one = todo.pop()
            if one not in found and one not in left:
                found.add(one)
                todo += [*self.definition(one)[1], (one[0], "")]
        return found

    def find(self, module: _Module, name: str) -> "_Module | Definition | None":
        """What a name of a module stands for: a module, a definition, or nothing of this project.
        Followed through as many imports as there are."""
        for _ in range(20):  # a circle of imports stands for nothing
            if name in module.definitions:
                return (module.name, name) if module.name else None
            where, inner = module.imports.get(name, ("", ""))
            if inner and f"{where}.{inner}" in self.paths:
                where, inner = f"{where}.{inner}", ""
            if where not in self.paths:
                return None
            if not inner:
                return self.module(where)
            module, name = self.module(where), inner
        return None

    def find_path(self, path: str) -> "_Module | Definition | None":
        """What a text such as `replib.models.planted` or `replib.models.planted.build` names."""
        if path in self.paths:
            return self.module(path)
        where, _, name = path.rpartition(".")
        known = where in self.paths and name in self.module(where).definitions
        return (where, name) if known else None


def _module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --- the meaning of code --------------------------------------------------------------------------


class _Writer:
    """Writes code down by its meaning, with `@` for every definition of the project that it reads.
    In one spelling for all versions of Python, which `ast.dump` has not."""

    def __init__(self, project: _Project, module: _Module) -> None:
        self.project, self.module = project, module
        self.reads: list[Definition] = []
        self.scopes: list[tuple[bool, set[str]]] = []  # (of a class?, the names bound in it)

    def write(self, body: Sequence[ast.stmt]) -> tuple[str, list[Definition]]:
        return self.body(body), self.reads

    def body(self, body: Sequence[ast.stmt]) -> str:
        return "\n".join(self.node(part) for part in body if not _is_silent(part))

    def node(self, node: object) -> str:
        match node:
            case ast.Name() | ast.Attribute() if (found := self.meaning(node)) is not None:
                return self.read(found)
            case ast.Name(id=name):
                return name
            case ast.Constant(value=str(path)) if "." in path and (
                found := self.project.find_path(path)
            ):
                return self.read(found)
            case ast.Constant(value=value):
                return f"{type(value).__name__} {value!r}"
            case ast.Raise():
                return "(raise)"  # which error, and what it says, is part of no number
            case ast.AnnAssign(target=target, annotation=kind, value=value) if self.in_class:
                return f"(Field {self.node(target)} {self.node(kind)} {self.node(value)})"
            case ast.AnnAssign(value=None):
                return ""
            case ast.AnnAssign(target=target, value=value):
                return f"(Assign targets=[{self.node(target)}] value={self.node(value)})"
            case ast.Lambda() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return self.definition(node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                return self.comprehension(node)
            case ast.AST():
                parts = {name: getattr(node, name) for name in node._fields}
                text = " ".join(
                    f"{name}={self.node(part)}"
                    for name, part in parts.items()
                    if name not in _LEFT_OUT and part not in (None, [])
                )
                return f"({type(node).__name__} {text})"
            case [ast.stmt(), *_]:
                return f"[{self.body(node)}]"
            case list():
                return f"[{' '.join(map(self.node, node))}]"
        return str(node)

    def definition(self, node: ast.AST) -> str:
        """A function or a class: what is read outside of it, then its inside."""
        name = getattr(node, "name", "") if self.scopes else ""  # a definition's own does not count
        outside, names = [*getattr(node, "decorator_list", ())], set()
        if is_class := isinstance(node, ast.ClassDef):
            outside += [*node.bases, *node.keywords]
        else:
            outside += [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            names = {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}
            name += f" {ast.unparse(_bare(node.args))}"
        text = f"({type(node).__name__} {name} {self.node(outside)}"
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        return f"{text} {self.inside(is_class, names | set(_bound(body)), body)})"

    def comprehension(self, node: ast.expr) -> str:
        first, *rest = node.generators
        text = f"({type(node).__name__} {self.node(first.iter)}"
        targets = [part for one in node.generators for part in ast.walk(one.target)]
        names = {part.id for part in targets if isinstance(part, ast.Name)}
        made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return f"{text} {self.inside(False, names, first.target, first.ifs, rest, made)})"

    def inside(self, of_class: bool, names: set[str], *parts: object) -> str:
        """These parts of a function, class or comprehension, in which these names are bound."""
        self.scopes.append((of_class, names))
        text = " ".join(map(self.node, parts))
        self.scopes.pop()
        return text

    @property
    def in_class(self) -> bool:
        return bool(self.scopes) and self.scopes[-1][0]

    def meaning(self, node: ast.expr) -> "_Module | Definition | str | None":
        """What a name, or a name with attributes, stands for outside of this definition: a text is
        the path of something in another package."""
        if isinstance(node, ast.Name):
            for depth, (of_class, names) in enumerate(reversed(self.scopes)):
                if node.id in names and not (of_class and depth):
                    return None
            foreign = ".".join(filter(None, self.module.imports.get(node.id, ())))
            return self.project.find(self.module, node.id) or foreign or None
        if not isinstance(node, ast.Attribute):
            return None
        match self.meaning(node.value):
            case str(path):
                return f"{path}.{node.attr}"
            case _Module(name=name) as module:
                found = self.project.find_path(f"{name}.{node.attr}")
                return found or self.project.find(module, node.attr)
        return None

    def read(self, found: "_Module | Definition | str") -> str:
        match found:
            case str():
                return found
            case _Module(name=name, definitions=definitions):  # used as an object: all of it
                self.reads += [(name, one) for one in definitions] + [(name, "")]
                return "@@"
        self.reads.append(found)
        return "@"


def _bare(arguments: ast.arguments) -> ast.arguments:
    """The arguments of a function without annotations and values."""
    kinds = ("posonlyargs", "args", "kwonlyargs")
    bare = {kind: [ast.arg(one.arg) for one in getattr(arguments, kind)] for kind in kinds}
    stars = {kind: getattr(arguments, kind) for kind in ("vararg", "kwarg")}
    bare |= {kind: one and ast.arg(one.arg) for kind, one in stars.items()}
    return ast.arguments(**bare, kw_defaults=[None] * len(arguments.kwonlyargs), defaults=[])


def _bound(body: Sequence[ast.AST]) -> Iterator[str]:
    """The names that the statements of a function or class bind, without those inside of others."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                inside = (part for part in ast.walk(node) if isinstance(part, ast.NamedExpr))
                yield from (part.target.id for part in inside)
                continue
            case ast.Name(ctx=ast.Store() | ast.Del()):
                yield node.id
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar() if node.name:
                yield node.name
            case ast.MatchMapping(rest=str(name)):
                yield name
        yield from _bound(list(ast.iter_child_nodes(node)))
