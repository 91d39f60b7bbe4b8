"""The rules of the layout, read from the sources: who may import whom, names, sizes, docstrings."""

import ast
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOTS = {"post_platform": ROOT / "platform", "post_model": ROOT / "model"}
SOURCES = {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
    for name, root in ROOTS.items()
    for path in sorted((root / name).rglob("*.py"))
}
SCRIPTS = sorted(path for path in (ROOT / "pipelines").glob("*.py") if path.name != "_paths.py")
FORBIDDEN_IN_MODEL = {"post_platform", "ray", "mlflow", "boto3", "botocore", "webdataset", "pydantic", "yaml"}
EXPERIMENT_PARTS = ("log", "buffer", "owner", "reader", "sweep", "registry")
EXPERIMENT_FILES = {f"post_platform.experiment_{part}" for part in EXPERIMENT_PARTS}
HEAVY = {"av", "boto3", "matplotlib", "mlflow", "optuna", "pandas", "ray", "scipy", "torch", "torchvision"}
ONE_PLACE = {  # the modules that may import an outside service
    "boto3": {"post_platform.storage"},
    "botocore": {"post_platform.storage"},
    "mlflow": {*EXPERIMENT_FILES, "post_platform.serving_model"},  # the latter is run by MLflow, and imported by nobody
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(node: ast.AST, *, lazy: bool = True) -> Iterator[str]:
    """Every dotted name a source imports; without `lazy` only what importing the module imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif lazy or not (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        ):
            yield from imports(child, lazy=lazy)


def modules(path: Path, *, lazy: bool) -> set[str]:
    """Our own modules that a source imports."""
    found = set()
    for name in imports(tree(path), lazy=lazy):
        while name and name not in SOURCES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {""}


def names(sources: dict[str, Path]) -> list:
    return [pytest.param(path, id=name) for name, path in sources.items()]


def test_the_rules_see_the_sources():
    assert {"post_platform.cluster", "post_platform.labels", "post_model"} <= SOURCES.keys()
    assert modules(SOURCES["post_platform.cluster"], lazy=False) == {"post_platform.errors"}
    assert modules(SOURCES["post_platform.cluster"], lazy=True) == {
        "post_platform",
        "post_platform.errors",
        "post_model",
    }


@pytest.mark.parametrize("folder", ["platform", "model"])
def test_source_roots_are_no_packages(folder):
    assert not (ROOT / folder / "__init__.py").exists(), "it would shadow the standard library's platform"


def test_import_platform_is_the_standard_library_s_under_pytest_and_from_the_root():
    assert Path(platform.__file__).parent == Path(os.__file__).parent
    code = "import os, platform; assert os.path.dirname(platform.__file__) == os.path.dirname(os.__file__)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    code = f"import sys; sys.path[:0] = [{str(ROOT / 'pipelines')!r}]; import _paths; {code}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", names({name: path for name, path in SOURCES.items() if name.startswith("post_model")}))
def test_the_model_is_pure(path):
    reached = {name.split(".")[0] for name in imports(tree(path))}
    assert not reached & FORBIDDEN_IN_MODEL


def test_the_model_loads_nothing_of_the_platform():
    code = "import sys; before = set(sys.modules)\n"
    code += "".join(f"import {name}\n" for name in SOURCES if name.startswith("post_model"))
    code += f"found = {{name.split('.')[0] for name in set(sys.modules) - before}} & {FORBIDDEN_IN_MODEL!r}\n"
    code += "assert not found, found"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "model")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", ONE_PLACE)
def test_an_outside_service_is_imported_in_one_place(service):
    importers = {
        name for name, path in SOURCES.items() if any(found.split(".")[0] == service for found in imports(tree(path)))
    }
    importers |= {path.name for path in SCRIPTS if any(found.split(".")[0] == service for found in imports(tree(path)))}
    assert importers <= ONE_PLACE[service]


def test_nothing_imports_a_script():
    scripts = {path.stem for path in SCRIPTS}
    for path in [*SOURCES.values(), *SCRIPTS]:
        reached = {name.split(".")[0] for name in imports(tree(path))}
        assert not reached & (scripts | {"pipelines"}), path.name


def test_no_import_cycles():
    graph = {name: modules(path, lazy=True) - {name} for name, path in SOURCES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_file_is_too_long_to_hold_in_the_head():
    python = [*SOURCES.values(), *SCRIPTS, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert {path.name: count for path in python if (count := len(path.read_text().splitlines())) > 400} == {}


def test_no_file_is_a_drawer():
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not {path.stem for path in [*SOURCES.values(), *SCRIPTS]} & drawers


def test_no_script_is_named_like_a_standard_library_module():
    assert not {path.stem for path in SCRIPTS} & set(sys.stdlib_module_names)


def test_tests_are_flat_and_named_after_modules():
    assert not (ROOT / "tests" / "platform").exists()
    assert not list((ROOT / "tests").glob("*/test_*.py"))


def undocumented(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Public functions, methods and classes without a docstring."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            overload = any("overload" in ast.dump(mark) for mark in child.decorator_list)
            if ast.get_docstring(child) is None and not overload:
                yield prefix + child.name
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("path", names(SOURCES))
def test_every_public_name_has_a_docstring(path):
    assert ast.get_docstring(tree(path)), "the module has none"
    assert list(undocumented(tree(path))) == []


@pytest.mark.parametrize("script", [pytest.param(path, id=path.name) for path in SCRIPTS])
def test_a_script_explains_itself_quickly_and_on_one_screen(script):
    command = [sys.executable, "-X", "importtime", script, "--help"]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("usage: ")
    assert len(lines) <= 40, "one screen"
    assert max(map(len, lines)) <= 100, "one screen"
    assert [line for line in lines if "example: " in line] == lines[-1:], "one example, on the last line"
    assert lines[-1].startswith(f"example: python pipelines/{script.name} ")
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert not loaded & HEAVY, "import it where it is used: --help must not wait for it"


def test_the_lock_pins_everything_and_names_no_host():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pin = re.compile(r"([A-Za-z0-9._-]+)==[0-9][0-9a-z.]*(; sys_platform == \"linux\")?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        assert {re.match(r"[A-Za-z0-9-]+", name)[0].lower() for name in group} <= pinned


def test_nothing_depends_on_a_machine_s_folders():
    """A fresh clone holds all that sources and tests read."""
    texts = [*SOURCES.values(), *(ROOT / "pipelines").rglob("*.*"), *(ROOT / "tests").glob("*.py"), ROOT / "Makefile"]
    texts = [path for path in texts if path.suffix != ".pyc" and path != Path(__file__).resolve()]
    found = re.compile(r"(\.\./shared/|/(work|root|home|opt|mnt)/\w)")
    assert {path.name: hit[0] for path in texts if (hit := found.search(path.read_text()))} == {}
