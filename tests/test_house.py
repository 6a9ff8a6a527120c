"""The rules of the house, read off the source: which way imports point and what may stand in it."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = "loom"
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
THREADS = tuple(name for name in PACKAGES if name != "core")
SOURCES = {
    package: ROOT / "packages" / ("core" if package == CORE else package) / "src" / package
    for package in (CORE, *THREADS)
}


@cache
def modules(package: str) -> dict[str, Path]:
    """Every module of one of our packages by its dotted name."""
    found = {}
    if package not in SOURCES:
        return found
    for path in sorted(SOURCES[package].rglob("*.py")):
        parts = path.relative_to(SOURCES[package].parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Dotted names that a module imports, anywhere or only when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = set()
    if at_import_time:
        for node in ast.walk(tree):
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            )
            if lazy:
                hidden.update(id(inner) for inner in ast.walk(node) if inner is not node)
    names = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            assert node.module
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            known = named & modules(node.module.split(".")[0]).keys()
            names.update(known)
            if known != named:  # something of the module itself, not only modules inside it
                names.add(node.module)
    return names


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_the_core_imports_no_thread():
    for name, path in modules(CORE).items():
        assert not tops(imports(path)) & set(THREADS), name


@pytest.mark.parametrize("thread", THREADS)
def test_a_thread_imports_no_other_thread(thread):
    for name, path in modules(thread).items():
        assert not tops(imports(path)) & (set(THREADS) - {thread}), name


@pytest.mark.parametrize("package", [CORE, *THREADS])
def test_nothing_imports_a_command_line(package):
    for name, path in modules(package).items():
        if name in {f"{package}.cli", f"{package}.__main__", "loom.cli"}:
            continue
        assert f"{package}.cli" not in imports(path), name


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize(("room", "barred"), [("data", "models"), ("models", "data")])
def test_models_and_data_do_not_import_each_other(thread, room, barred):
    for name, path in modules(thread).items():
        if name.startswith(f"{thread}.{room}"):
            clash = {i for i in imports(path) if i.startswith(f"{thread}.{barred}")}
            assert not clash, f"{name} imports {clash}"


def graph(package: str) -> dict[str, set[str]]:
    known = modules(package)
    return {
        name: {i for i in imports(path, at_import_time=True) if i in known and i != name}
        for name, path in known.items()
    }


@pytest.mark.parametrize("package", [CORE, *THREADS])
def test_no_module_imports_itself_by_a_circle(package):
    edges = graph(package)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("package", [CORE, *THREADS])
def test_command_lines_reach_torch_only_inside_commands(package):
    known = {name: path for p in (CORE, package) for name, path in modules(p).items()}
    seen: set[str] = set()
    queue = [f"{package}.cli"]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        needed = imports(known[name], at_import_time=True)
        assert "torch" not in tops(needed), f"{name} imports torch when {package}.cli starts"
        parents = {i.rsplit(".", k)[0] for i in needed for k in range(i.count(".") + 1)}
        queue.extend(sorted((needed | parents) & known.keys()))


def command(package: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; from {package}.cli import main; sys.exit(main())"]


@pytest.mark.parametrize("package", [CORE, *THREADS])
def test_help_does_not_import_torch(package):
    command = "__main__" if package == CORE else "cli"
    code = (
        f"import sys; sys.argv = ['{package}', '--help']\n"
        f"from {package}.{command} import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'scipy', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name.decode() for name in done.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_module_is_longer_than_500_lines():
    long = {
        str(path.relative_to(ROOT)): count
        for path in tracked("*.py", "*.cpp", "*.cu", "*.h")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}


def test_uv_lock_is_not_tracked():
    assert tracked("uv.lock", "**/uv.lock") == []


def test_no_registry_address_and_no_machine_path_is_tracked():
    address = re.compile(
        r"https?://[^ \"')]*/(simple|packages)/\w|file:///(root|home|tmp|opt|mnt)"
        r"|(^|[\s\"'=(])/(root|home)/\w"
    )
    texts = {".py", ".md", ".toml", ".yaml", ".lock", ".cpp", ".h", ".cu", ".sh", ""}
    here = Path(__file__).resolve()
    for path in tracked():
        if path.suffix in texts and path != here:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not address.search(line), f"{path.relative_to(ROOT)}:{number}: {line}"


def test_each_package_explains_each_of_its_dependencies():
    import tomllib

    for manifest in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(manifest.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {}).values()
        needed = {
            re.split(r"[<>=\[; ]", row)[0]
            for row in [*project["dependencies"], *(row for extra in extras for row in extra)]
        }
        readme = (manifest.parent / "README.md").read_text(encoding="utf-8")
        missing = {name for name in needed if f"`{name}`" not in readme}
        assert missing == set(), f"{manifest.parent.name}/README.md does not say why it needs them"
