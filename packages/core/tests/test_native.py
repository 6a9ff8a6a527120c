"""Native builds: what is compiled when, and what may be loaded."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loom import native
from loom.errors import UserError
from loom.native import build, cuda, inventory, toolchain

pytestmark = pytest.mark.skipif(
    isinstance(toolchain.find_compiler(), native.Unavailable), reason="no C++ compiler here"
)

ANSWER = 'extern "C" int answer() { return 42; }\n'
FLOATS = ctypes.c_void_p


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache, no memory of earlier calls, and no settings of the developer."""
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))
    for name in ("CXX", "LOOM_ISA", "LOOM_CUDA_ARCH", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    forget()


def forget() -> None:
    """Make the next call behave like the first one of a process."""
    native._open.cache_clear()
    native._open_cuda.cache_clear()
    native._said.clear()


@pytest.fixture
def answer(tmp_path):
    source = tmp_path / "answer.cpp"
    source.write_text(ANSWER, encoding="utf-8")
    return source


@pytest.fixture
def counted_compiler(tmp_path, monkeypatch):
    """A compiler that writes a line per compilation, so that tests can count them."""
    count = tmp_path / "compilations"
    count.touch()
    real = shutil.which("g++") or shutil.which("clang++")
    wrapper = tmp_path / "counted-c++"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *" -o "*) echo . >> {count}; sleep "${{SLOW:-0}}";; esac\n'
        f'exec {real} "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    return lambda: len(count.read_text(encoding="utf-8").splitlines())


def opened(*sources: Path, **options) -> native.Library:
    library = native.library("test", sources=sources, **options)
    assert isinstance(library, native.Library), library
    return library


def call(library: native.Library, name: str = "answer") -> int:
    return library.function(name, [], ctypes.c_int)()


# --- the cache -----------------------------------------------------------------------------------


def test_a_library_is_compiled_once_and_then_loaded_from_the_cache(answer, counted_compiler):
    assert call(opened(answer)) == 42
    forget()
    assert call(opened(answer)) == 42
    assert counted_compiler() == 1


@pytest.mark.parametrize("edited", ["answer.cpp", "outer.h", "inner.h"])
def test_editing_a_source_or_any_included_header_compiles_again(tmp_path, edited):
    (tmp_path / "inner.h").write_text("#define INNER 2\n", encoding="utf-8")
    (tmp_path / "outer.h").write_text('#include "inner.h"\n#define OUTER 40\n', encoding="utf-8")
    source = tmp_path / "answer.cpp"
    source.write_text(
        '#include "outer.h"\nextern "C" int answer() { return OUTER + INNER; }\n', encoding="utf-8"
    )
    before = opened(source)
    with (tmp_path / edited).open("a", encoding="utf-8") as stream:
        stream.write("// edited\n")
    forget()
    assert opened(source).path != before.path


def test_the_key_changes_with_flags_compiler_and_level_but_not_with_the_checkout(tmp_path, answer):
    def key(isa="avx2", flags=("-O3",), compiler="g++ 12", source=answer):
        return build.Recipe("n", isa, (source,), ("/usr/bin/g++", *flags), compiler).key()

    assert len({key(), key(isa="portable"), key(flags=("-O2",)), key(compiler="g++ 13")}) == 4
    elsewhere = tmp_path / "elsewhere" / answer.name
    elsewhere.parent.mkdir()
    shutil.copy(answer, elsewhere)
    assert key(source=elsewhere, flags=("-O3", "-I/other")) == key()


def test_loom_headers_are_part_of_the_key(tmp_path):
    source = tmp_path / "uses.cpp"
    source.write_text("#include <loom/simd.h>\n#include <vector>\n", encoding="utf-8")
    recipe = build.Recipe("n", "portable", (source,), ("g++",), "v")
    assert recipe.headers() == [native.include_dir() / "loom" / "simd.h"]


def test_a_damaged_library_is_compiled_again(answer, counted_compiler, caplog):
    path = opened(answer).path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # this process has it mapped
    path.write_bytes(bytes(content))
    forget()
    assert call(opened(answer)) == 42
    assert counted_compiler() == 2
    assert "damaged" in caplog.text


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"name": 1}'])
def test_an_unreadable_manifest_means_a_new_build(answer, counted_compiler, manifest):
    path = opened(answer).path.with_name("manifest.json")
    path.write_text(manifest, encoding="utf-8")
    forget()
    assert call(opened(answer)) == 42
    assert counted_compiler() == 2


def test_two_processes_that_build_at_once_compile_once(answer, counted_compiler):
    code = (
        "import ctypes, sys; from pathlib import Path; from loom import native; "
        "library = native.library('test', sources=[Path(sys.argv[1])]); "
        "sys.exit(library.function('answer', [], ctypes.c_int)())"
    )
    environment = {**os.environ, "SLOW": "0.5"}
    command = [sys.executable, "-c", code, str(answer)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [42, 42]
    assert counted_compiler() == 1


def test_a_killed_build_leaves_no_library_and_does_not_block_the_next(
    tmp_path, answer, counted_compiler
):
    code = (
        "import sys; from pathlib import Path; from loom import native; "
        "native.library('test', sources=[Path(sys.argv[1])])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(answer)],
        env={**os.environ, "SLOW": "60"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while counted_compiler() == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    cache = tmp_path / "cache" / "native"
    assert build.artefacts(cache) == ()
    assert call(opened(answer)) == 42
    assert counted_compiler() == 2
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == []


def test_a_lock_that_is_held_too_long_is_named(tmp_path, answer, monkeypatch):
    library = opened(answer)
    lock = library.path.parent.with_name(f"{library.path.parent.name}.lock")
    shutil.rmtree(library.path.parent)
    forget()
    monkeypatch.setattr(build, "LOCK_TIMEOUT_S", 0.1)
    with build.FileLock(lock):
        held = native.library("test", sources=[answer])
    assert isinstance(held, native.Unavailable)
    assert "another process" in held.reason
    assert str(lock) in held.reason


def test_a_cache_that_cannot_be_written_is_named(tmp_path, answer, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "file"))
    refused = native.library("test", sources=[answer])
    assert isinstance(refused, native.Unavailable)
    assert str(tmp_path / "file") in refused.reason
    assert "LOOM_CACHE" in refused.reason


# --- instruction sets ----------------------------------------------------------------------------


def processor(tmp_path, monkeypatch, text: str) -> None:
    path = tmp_path / f"cpuinfo-{abs(hash(text))}"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(toolchain, "CPU_INFO", path)


AVX2 = "processor : 0\nflags : fpu sse2 avx avx2 fma\n"
AVX512 = "flags\t\t: fma avx2 avx512f avx512dq avx512bw avx512vl\n"
ARM = "processor : 0\nFeatures : fp asimd evtstrm aes\n"


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        (AVX512, ("avx512", "avx2", "portable")),
        (AVX512.replace("avx512vl", ""), ("avx2", "portable")),
        (AVX512.replace("fma", ""), ("portable",)),
        (AVX2, ("avx2", "portable")),
        (AVX2.replace("fma", ""), ("portable",)),
        (ARM, ("portable",)),
        ("", ("portable",)),
    ],
)
def test_levels_follow_the_processor_flags(tmp_path, monkeypatch, text, levels):
    processor(tmp_path, monkeypatch, text)
    assert toolchain.cpu_levels() == levels
    assert toolchain.chosen_level() == levels[0]


def test_loom_isa_forces_a_level_that_the_processor_has(tmp_path, monkeypatch):
    processor(tmp_path, monkeypatch, AVX2)
    monkeypatch.setenv("LOOM_ISA", "portable")
    assert toolchain.chosen_level() == "portable"
    monkeypatch.setenv("LOOM_ISA", "avx512")
    with pytest.raises(UserError, match="no avx512"):
        toolchain.chosen_level()
    monkeypatch.setenv("LOOM_ISA", "mmx")
    with pytest.raises(UserError, match="not one of"):
        toolchain.chosen_level()


def test_no_level_is_compiled_for_the_machine_at_hand():
    flags = [
        *native.CXX_FLAGS,
        *(f for level in toolchain.LEVELS.values() for f in level.compiler_flags),
    ]
    assert not [flag for flag in flags if "march" in flag or "mtune" in flag or "native" in flag]


def test_a_library_for_another_processor_is_never_loaded(answer, monkeypatch):
    monkeypatch.setenv("LOOM_ISA", "portable")
    library = opened(answer)
    folder, key = library.path.parent, library.path.parent.name.rpartition("-")[2]
    assert isinstance(build.check(folder, "portable", key, ("portable",)), build.Artefact)

    refused = build.check(folder, "portable", key, ("neon",))
    assert isinstance(refused, native.Unavailable)
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "isa": "avx512"}), encoding="utf-8")
    refused = build.check(folder, "portable", key, ("avx512", "portable"))
    assert isinstance(refused, native.Unavailable)
    assert "avx512" in refused.reason
    forget()
    assert opened(answer).isa == "portable"
    assert json.loads(manifest.read_text(encoding="utf-8"))["isa"] == "portable"


# --- failures and choices ------------------------------------------------------------------------


def test_a_syntax_error_shows_the_line_of_the_compiler_and_the_log(answer):
    answer.write_text('extern "C" int answer() {\n  return forty_two;\n}\n', encoding="utf-8")
    failed = native.library("test", sources=[answer])
    assert isinstance(failed, native.Unavailable)
    assert "answer.cpp:2:10: error:" in failed.reason
    assert "return forty_two;" in failed.reason
    log = Path(failed.reason.rpartition("full log: ")[2])
    assert "forty_two" in log.read_text(encoding="utf-8")
    assert str(answer) in log.read_text(encoding="utf-8").splitlines()[0]


def test_an_undefined_symbol_is_a_reason_and_not_a_crash(answer):
    answer.write_text('int other(); extern "C" int answer() { return other(); }', encoding="utf-8")
    failed = native.library("test", sources=[answer], flags=["-Wl,-z,now"])
    assert isinstance(failed, native.Unavailable)
    assert "cannot be loaded" in failed.reason


def test_a_missing_source_is_named(tmp_path):
    missing = native.library("test", sources=[tmp_path / "gone.cpp"])
    assert isinstance(missing, native.Unavailable)
    assert "gone.cpp" in missing.reason


def test_a_missing_function_names_the_library(answer):
    with pytest.raises(AttributeError, match="test .* exports no question"):
        opened(answer).function("question", [])


def test_without_a_compiler_the_torch_twin_runs_with_one_warning(
    tmp_path, answer, monkeypatch, caplog
):
    monkeypatch.setenv("PATH", str(tmp_path))
    heard: list[str] = []
    monkeypatch.setattr(native, "_listener", None)
    native.on_notice(heard.append)
    library = native.library("test", sources=[answer])
    assert isinstance(library, native.Unavailable)
    assert "install g++ or clang++" in library.reason
    assert [native.choose("auto", library, "cpu") for _ in range(3)] == ["torch"] * 3
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == len(heard) == 1
    assert "install g++" in heard[0]
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        native.choose("cpu", library, "cpu")


def test_choose_takes_the_kernel_of_the_device_and_says_so_once(answer, monkeypatch):
    heard: list[str] = []
    monkeypatch.setattr(native, "_listener", heard.append)
    library = opened(answer)
    assert [native.choose(impl, library, "cpu") for impl in ("auto", "cpu", "torch")] == [
        "cpu",
        "cpu",
        "torch",
    ]
    assert heard == [f"test: cpu kernel ({library.isa})"]
    assert native.choose("auto", library, "cuda:1") == "torch"  # it has no CUDA kernel
    assert "no CUDA kernel" in heard[1]
    for impl, device in (("cuda", "cpu"), ("cpu", "cuda"), ("fast", "cpu")):
        with pytest.raises(UserError, match=f"impl={impl}"):
            native.choose(impl, library, device)


def test_pointer_takes_only_what_the_kernel_expects():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 4)
    assert native.pointer(tensor, torch.float32).value == tensor.data_ptr()
    assert native.pointer(None, torch.float32).value is None
    for wrong in (tensor.T[1:], tensor.double(), tensor.to("meta")):
        with pytest.raises(ValueError, match="contiguous torch.float32 tensor on cpu"):
            native.pointer(wrong, torch.float32)
    assert native.threads() == torch.get_num_threads()


def test_importing_native_does_not_import_torch():
    code = "import sys, loom.native.inventory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- CUDA ----------------------------------------------------------------------------------------


@pytest.fixture
def fake_cuda(tmp_path, monkeypatch):
    """A toolkit whose nvcc is reached through a wrapper script in another folder."""
    root = tmp_path / "cuda-99.0"
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True)
    (root / "include" / "cuda_runtime.h").touch()
    (root / "lib64" / "libcudart_static.a").touch()
    (root / "bin" / "nvcc").write_text(
        '#!/bin/sh\ncase "$1" in\n'
        f"--dryrun) echo '#$ _HERE_={root}/bin' >&2;;\n"
        "--version) echo 'Cuda compilation tools, release 99.0, V99.0.1';;\nesac\n"
    )
    wrappers = tmp_path / "local" / "bin"
    wrappers.mkdir(parents=True)
    (wrappers / "nvcc").write_text(f'#!/bin/sh\nexec {root}/bin/nvcc "$@"\n')
    for script in (root / "bin" / "nvcc", wrappers / "nvcc"):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrappers}:/usr/bin:/bin")
    monkeypatch.setattr(cuda, "DEFAULT_ROOT", tmp_path / "absent")
    return root


def test_the_real_toolkit_is_found_behind_a_wrapper_script(fake_cuda):
    assert cuda.find_cuda() == cuda.CudaToolkit(fake_cuda, "release 99.0, V99.0.1")


@pytest.mark.parametrize("part", ["include/cuda_runtime.h", "lib64/libcudart_static.a"])
def test_an_incomplete_toolkit_is_refused_and_the_missing_part_named(fake_cuda, part, monkeypatch):
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    (fake_cuda / part).unlink()
    refused = cuda.find_cuda()
    assert isinstance(refused, native.Unavailable)
    assert Path(part).name in refused.reason
    assert str(fake_cuda) in refused.reason


def test_architectures_come_from_the_setting_then_the_gpus_then_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    cuda._present_architectures.cache_clear()
    assert cuda.architectures() == ("86", "90")
    cuda._present_architectures.cache_clear()
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 9.0\necho 8.6\necho 9.0\n")
    smi.chmod(0o755)
    assert cuda.architectures() == ("86", "90")
    smi.write_text("#!/bin/sh\necho 10.0\necho 8.0\n")
    cuda._present_architectures.cache_clear()
    assert cuda.architectures() == ("80", "100")
    monkeypatch.setenv("LOOM_CUDA_ARCH", "7.5; 90a")
    assert cuda.architectures() == ("75", "90a")
    monkeypatch.setenv("LOOM_CUDA_ARCH", "hopper")
    with pytest.raises(UserError, match="hopper"):
        cuda.architectures()
    cuda._present_architectures.cache_clear()


def test_a_plain_cuda_source_compiles_and_exports_its_launcher(tmp_path, answer):
    toolkit = cuda.find_cuda()
    if isinstance(toolkit, native.Unavailable):
        pytest.skip(toolkit.reason)
    source = tmp_path / "add.cu"
    source.write_text(
        "__global__ void add(float* x, int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) x[i] += ONE;\n}\n"
        'extern "C" int add_one(float* x, int n, cudaStream_t stream) {\n'
        "  add<<<(n + 255) / 256, 256, 0, stream>>>(x, n);\n  return cudaGetLastError();\n}\n"
    )
    refused = opened(answer, cuda=[source]).cuda
    assert isinstance(refused, native.Unavailable)
    assert "ONE" in refused.reason  # which only a flag defines
    library = opened(answer, cuda=[source], cuda_flags=["-DONE=1"])
    gpu = library.cuda
    assert isinstance(gpu, native.Library), gpu
    assert gpu.isa == "cuda"
    gpu.function("add_one", [FLOATS, ctypes.c_int, FLOATS], ctypes.c_int)  # or AttributeError
    assert native.choose("auto", library, "cuda") == "cuda"


# --- the inventory -------------------------------------------------------------------------------


class FakeEntryPoint:
    def __init__(self, name, value, loaded):
        self.name, self.value, self.loaded = name, value, loaded

    def load(self):
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def test_build_all_builds_every_package_and_outlives_a_broken_one(answer, monkeypatch):
    entries = [
        FakeEntryPoint("broken", "broken:LIBRARIES", ImportError("no module named broken")),
        FakeEntryPoint("good", "good:LIBRARIES", {"answer": lambda: opened(answer)}),
    ]
    monkeypatch.setattr(inventory.importlib.metadata, "entry_points", lambda group: entries)
    broken, good = inventory.build_all()
    assert isinstance(broken.result, native.Unavailable)
    assert "broken:LIBRARIES" in broken.result.reason
    assert (good.package, good.name) == ("good", "answer")
    assert isinstance(good.result, native.Library)
    found = inventory.toolchain()
    assert [artefact.path for artefact in found.artefacts] == [good.result.path]
    assert found.level == good.result.isa
