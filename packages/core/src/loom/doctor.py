"""What is wrong with this machine, each finding with one line that mends it.

A check is a name and a function that returns a `Finding`. Those of the core look at what has cost
people days: a torch that does not see the GPU or starts more threads than may run, a missing
compiler, a full or tiny disk, a second copy of a package on the path, and variables or `.pth` files
that quietly change what is imported.

A thread names its checks in its `pyproject.toml`, where `loom doctor` finds those of all packages:

    [project.entry-points."loom.doctor"]
    featdistill = "featdistill.doctor:checks"
"""

import functools
import importlib.metadata
import json
import os
import resource
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loom.errors import UserError

ENTRY_POINTS = "loom.doctor"
OLDEST_PYTHON = (3, 11)
LEAST_CACHE_BYTES = 1 << 30
LEAST_DISK_BYTES = 5 << 30
LEAST_SHARED_MEMORY_BYTES = 1 << 30
LEAST_OPEN_FILES = 1024
TORCH_TIMEOUT_S = 120

_TORCH_PROBE = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
names = [torch.cuda.get_device_name(i) for i in range(count)]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": names,
                  "threads": torch.get_num_threads(), "path": torch.__file__}))
"""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: `ok`, `warn` (works, with a loss) or `fail`.
        detail: What was found, with its number.
        fix: What to do about it.
    """

    level: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A named question to this machine."""

    name: str
    run: Callable[[], Finding]


@dataclass(frozen=True)
class Outcome:
    """A check and what it found."""

    name: str
    finding: Finding


def run_checks(checks: Iterable[Check]) -> list[Outcome]:
    """Run every check; one that raises is a failure of its own."""
    return [Outcome(check.name, _guarded(check)) for check in checks]


def _guarded(check: Check) -> Finding:
    try:
        return check.run()
    except UserError as error:
        return Finding("fail", error.message, error.hint)
    except Exception as error:  # a broken machine breaks checks in ways nobody listed
        return Finding("fail", f"the check itself failed: {type(error).__name__}: {error}")


def report(outcomes: Sequence[Outcome], *, as_json: bool = False) -> int:
    """Print the outcomes and return the exit code: 1 if a check failed, else 0."""
    if as_json:
        rows = [
            {"name": each.name, "level": each.finding.level, "detail": each.finding.detail}
            | ({"fix": each.finding.fix} if each.finding.fix else {})
            for each in outcomes
        ]
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    else:
        width = max((len(each.name) for each in outcomes), default=0)
        for each in outcomes:
            finding = each.finding
            sys.stdout.write(f"{finding.level:<4}  {each.name:<{width}}  {finding.detail}\n")
            if finding.fix and finding.level != "ok":
                sys.stdout.write(f"{'':<4}  {'':<{width}}  -> {finding.fix}\n")
    return int(any(each.finding.level == "fail" for each in outcomes))


def core_checks(distribution: str = "loom-core") -> list[Check]:
    """Return the checks that every thread needs.

    Args:
        distribution: The thread's distribution, looked for twice on the path beside the core.
    """
    packages = dict.fromkeys(["loom", distribution.replace("-", "_")])
    packages.pop("loom_core", None)
    return [
        Check("python", check_python),
        Check("torch", check_torch),
        Check("processors", check_processors),
        Check("gpu", check_gpu),
        Check("compiler", check_compiler),
        Check("nvcc", check_nvcc),
        Check("kernel cache", check_cache),
        Check("disk", lambda: check_disk(Path.cwd())),
        Check("shared memory", lambda: check_shared_memory(Path("/dev/shm"))),  # noqa: S108
        Check("open files", check_open_files),
        Check("installs", lambda: check_installs(list(packages), sys.path)),
        Check("commit", lambda: check_commit(Path(__file__).parent)),
        Check("variables", lambda: check_variables(os.environ)),
        Check(".pth files", lambda: check_pth_files(site_directories())),
    ]


def thread_checks() -> list[Check]:
    """Return the checks of every installed thread, each under the thread's name.

    A thread whose checks cannot be imported gets one check, which fails and says why.
    """
    found = []
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS)):
        try:
            own = point.load()()
        except Exception as error:  # a broken package must not hide what ails the others
            own = [Check("import", functools.partial(_not_imported, point.value, error))]
        found += [Check(f"{point.name}: {check.name}", check.run) for check in own]
    return found


def _not_imported(place: str, error: Exception) -> Finding:
    detail = f"{place} cannot be imported: {type(error).__name__}: {error}"
    return Finding("fail", detail, "run `uv sync` again")


def check_python() -> Finding:
    """Check the interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info[:2]) < OLDEST_PYTHON:
        return Finding("fail", version, "use Python 3.11 or newer: uv python install 3.12")
    return Finding("ok", f"{version} ({sys.executable})")


@functools.cache
def probe_torch(executable: str = sys.executable) -> dict[str, Any] | str:
    """Import torch in a process of its own, which may crash; return its facts or the error."""
    try:
        done = subprocess.run(
            [executable, "-c", _TORCH_PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TORCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the import took more than {TORCH_TIMEOUT_S} s"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = done.stderr.strip().splitlines()
    return last[-1] if last else f"the process ended with {done.returncode}"


def check_torch() -> Finding:
    """Check that torch can be imported."""
    facts = probe_torch()
    if isinstance(facts, str):
        return Finding("fail", f"torch cannot be imported: {facts}", "run `uv sync` again")
    built = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built without CUDA"
    return Finding("ok", f"{facts['version']}, {built}, {facts['threads']} threads")


def check_processors() -> Finding:
    """Check that torch starts no more threads than a container's quota lets run."""
    from loom.processors import usable_processors

    usable = usable_processors()
    facts = probe_torch()
    if isinstance(facts, dict) and facts["threads"] > usable:
        detail = f"{usable} may be used here, torch starts {facts['threads']} threads"
        return Finding("warn", detail, f"export OMP_NUM_THREADS={usable}")
    return Finding("ok", f"{usable} may be used of {os.cpu_count()}")


def check_gpu() -> Finding:
    """Check that torch sees the GPUs that the driver sees."""
    driver = _driver_gpus()
    facts = probe_torch()
    if isinstance(facts, str):
        return Finding("warn", "unknown: torch cannot be imported", "mend torch first")
    if facts["gpus"]:
        return Finding("ok", ", ".join(facts["gpus"]))
    if not driver:
        return Finding("ok", "none: everything runs on the CPU")
    return Finding(
        "warn",
        f"the driver has {len(driver)} ({driver[0]}), torch {facts['version']} sees none",
        "take a torch build for this driver (see the CUDA version that `nvidia-smi` shows), "
        "and check CUDA_VISIBLE_DEVICES",
    )


def _driver_gpus() -> list[str]:
    from loom.native.toolchain import probe

    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return [line.strip() for line in probe(command).splitlines() if line.strip()]


def check_compiler() -> Finding:
    """Check that kernels can be compiled, and say for which instruction set."""
    from loom.native.toolchain import Compiler, chosen_level, find_compiler

    level = chosen_level()
    compiler = find_compiler()
    if isinstance(compiler, Compiler):
        found = f"{compiler.version} ({compiler.path}), kernels for {level}"
        named = os.environ.get("CXX", "")
        if named and shutil.which(named) != str(compiler.path):
            fix = "set CXX to one compiler, without arguments, or unset it"
            return Finding("warn", f"CXX={named} does not run; taken is {found}", fix)
        return Finding("ok", found)
    return Finding(
        "warn",
        f"{compiler.reason}; the slower torch kernels are used",
        "apt install g++, dnf install gcc-c++ or conda install gxx",
    )


def check_nvcc() -> Finding:
    """Check the CUDA toolkit, which only machines with a GPU need."""
    from loom.native.cuda import CudaToolkit, find_cuda

    toolkit = find_cuda()
    if isinstance(toolkit, CudaToolkit):
        return Finding("ok", f"{toolkit.version} ({toolkit.root})")
    if not _driver_gpus():
        return Finding("ok", "none, and no GPU that would need it")
    fix = "install the CUDA toolkit, or set CUDA_HOME to a folder with bin/nvcc and include/"
    return Finding("warn", f"{toolkit.reason}; GPU kernels fall back to torch", fix)


def check_cache() -> Finding:
    """Check that compiled kernels can be kept."""
    from loom.native.toolchain import cache_dir

    return _check_folder(cache_dir(), LEAST_CACHE_BYTES, "set LOOM_CACHE to another folder")


def check_disk(folder: Path) -> Finding:
    """Check that runs can be written below a folder."""
    return _check_folder(folder, LEAST_DISK_BYTES, "work in another folder")


def _check_folder(folder: Path, least: int, otherwise: str) -> Finding:
    """Write a file to the nearest folder that exists, and look at the space there."""
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing) as stream:
            stream.write(b"x")
    except OSError as error:
        return Finding("fail", f"{existing}: cannot be written: {error.strerror}", otherwise)
    free = shutil.disk_usage(existing).free
    detail = f"{folder}, {_gigabytes(free)} free"
    if free < least:
        fix = f"free some space (at least {_gigabytes(least)}), or {otherwise}"
        return Finding("warn", detail, fix)
    return Finding("ok", detail)


def check_shared_memory(folder: Path) -> Finding:
    """Check the memory that processes share; containers often have 64 MB."""
    if not folder.is_dir():
        return Finding("ok", f"{folder} does not exist here")
    total = shutil.disk_usage(folder).total
    detail = f"{folder}, {_gigabytes(total)}"
    if total < LEAST_SHARED_MEMORY_BYTES:
        return Finding("warn", detail, "start the container with --shm-size=8g or --ipc=host")
    return Finding("ok", detail)


def check_open_files() -> Finding:
    """Check how many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_OPEN_FILES:
        return Finding("warn", f"at most {soft} (hard limit {hard})", "run `ulimit -n 4096`")
    return Finding("ok", f"at most {soft}")


def check_installs(packages: Sequence[str], search_path: Sequence[str]) -> Finding:
    """Check that each package can be imported from one place only."""
    for package in packages:
        places = []
        for entry in search_path:
            found = (Path(entry or ".") / package).resolve()
            if (found / "__init__.py").is_file() and found not in places:
                places.append(found)
        if len(places) > 1:
            others = ", ".join(map(str, places[1:]))
            return Finding(
                "fail",
                f"{package} is imported from {places[0]}, and is also in {others}",
                f"remove the copies that you do not mean: uv pip uninstall {package}",
            )
    return Finding("ok", f"{', '.join(packages)} in one place each")


def check_commit(package: Path) -> Finding:
    """Check that git can tell a run its commit; it refuses a checkout of somebody else's."""
    from loom.provenance import git_state, shown_changes

    checkout = next((each for each in package.parents if (each / ".git").exists()), None)
    if checkout is None:
        return Finding("ok", "not a checkout: runs record the versions of the packages")
    state = git_state(str(package))
    if state is None:
        return Finding(
            "warn",
            f"git does not read {checkout}: runs will not know their commit",
            f"git config --global --add safe.directory {shlex.quote(str(checkout))}, "
            "or install git",
        )
    changes = shown_changes(state["dirty"])
    return Finding("ok", f"{str(state['commit'])[:12]} of {checkout}, {changes}")


def check_variables(environment: os._Environ[str] | dict[str, str]) -> Finding:
    """Check for variables that change which modules and libraries are loaded."""
    names = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")
    found = [name for name in names if environment.get(name)]
    if not found:
        return Finding("ok", "none that changes what is loaded")
    detail = ", ".join(f"{name}={environment[name]}" for name in found)
    return Finding("warn", f"{detail} change what is loaded", f"unset {' '.join(found)}")


def site_directories() -> list[Path]:
    """Return the folders whose `.pth` files this interpreter reads."""
    named = [
        *site.getsitepackages(),
        *([site.getusersitepackages()] if site.ENABLE_USER_SITE else []),
    ]
    return [Path(name) for name in named if Path(name).is_dir()]


def check_pth_files(folders: Sequence[Path]) -> Finding:
    """Check for path files that no package owns: they outlive every attempt to find them."""
    strangers = [
        path
        for folder in folders
        for path in sorted(folder.glob("*.pth"))
        if path.name != "_virtualenv.pth" and not _is_owned(path)
    ]
    if not strangers:
        return Finding("ok", "each belongs to an installed package")
    names = ", ".join(map(str, strangers))
    return Finding("warn", f"{names} change sys.path and belong to no package", f"rm {names}")


def _is_owned(path: Path) -> bool:
    for distribution in importlib.metadata.distributions(path=[str(path.parent)]):
        record = distribution.read_text("RECORD") or ""
        if any(line.split(",")[0] == path.name for line in record.splitlines()):
            return True
    return False


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
