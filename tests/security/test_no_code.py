"""Nothing in the packages runs what it reads: no unpickling but by the restricted readers, no eval, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("storage", "extractors", "trainers", "pipeline", "workflows")

# What may stand where, and why.
ALLOWED = {
    ("storage/interop/unpickling.py", "pickle._Unpickler"),  # the restricted reader builds on it
    ("storage/interop/unpickling.py", "pickle._Pickler"),  # writing
    ("pipeline/decoding.py", "pickle.load"),  # pipes between a process and its own child, which nobody else can reach
    ("pipeline/decoding.py", "pickle.loads"),
}
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "pickle._Unpickler", "pickle._Pickler", "marshal.load", "marshal.loads", "shelve.open", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub.load", "subprocess.getoutput",
    "subprocess.getstatusoutput", "tempfile.mktemp",
}  # fmt: skip
FORBIDDEN_MODULES = {"cPickle", "dill", "cloudpickle", "joblib", "jsonpickle", "marshal", "shelve", "code", "runpy"}
FORBIDDEN_METHODS = {"extractall", "unpack_archive"}  # of tars and zips: members are read one by one


def offences(source: str, file: str = "x.py") -> list[str]:
    """Every place in a file that could run what it reads."""
    return [f"{file}:{line}: {what}" for line, what in _found(ast.parse(source)) if (file, what) not in ALLOWED]


def _found(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported(node)
        elif isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in FORBIDDEN:
            if isinstance(node.ctx, ast.Load):  # a setting may be called `compile`
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            yield from _called(node)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    modules = [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    names = [f"{modules[0]}.{each.name}" for each in node.names] if isinstance(node, ast.ImportFrom) else []
    yield from ((node.lineno, name) for name in (*modules, *names) if name.partition(".")[0] in FORBIDDEN_MODULES)
    yield from ((node.lineno, name) for name in names if name in FORBIDDEN)
    yield from ((node.lineno, f"{each.name} as {each.asname}") for each in node.names
                if each.asname and each.name in ("pickle", "yaml", "os", "subprocess"))  # fmt: skip


def _called(node: ast.Call) -> Iterator[tuple[int, str]]:
    name = ast.unparse(node.func)
    given = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if name == "torch.load" and given.get("weights_only") != "True":
        yield node.lineno, "torch.load without weights_only=True"
    if given.get("allow_pickle", "False") != "False" or (name == "np.load" and "allow_pickle" not in given):
        yield node.lineno, f"{name} with allow_pickle"
    if given.get("shell", "False") != "False":
        yield node.lineno, f"{name} with shell"
    if name == "importlib.import_module" and not (node.args and isinstance(node.args[0], ast.Constant)):
        yield node.lineno, f"{name} of a name that is not written there"
    if given.get("trust_remote_code", "False") != "False":
        yield node.lineno, f"{name} with trust_remote_code"
    if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
        yield node.lineno, f"{name}()"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_runs_what_it_reads(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert [each for path in files for each in offences(path.read_text(), path.relative_to(ROOT).as_posix())] == []


def test_every_exception_is_still_needed() -> None:
    for file, what in ALLOWED:
        assert what in (ROOT / file).read_text(), (file, what)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(handle)",
        "from pickle import loads",
        "import pickle as p",
        "import dill",
        "read = pickle.loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(handle, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "tar.extractall(folder)",
        "importlib.import_module(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_each_of_these_would_be_found(source: str) -> None:
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)", "yaml.safe_load(text)",
     "pickle.dumps(content, 2)", "network.eval()", "self.extractor.extract(batch)", "re.compile(pattern)"],
)  # fmt: skip
def test_none_of_these_is(source: str) -> None:
    assert offences(source) == []
