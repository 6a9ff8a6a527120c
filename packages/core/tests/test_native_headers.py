"""The headers that kernels are written with: what they compute on each instruction set."""

import ctypes
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loom import native
from loom.native import toolchain

pytestmark = pytest.mark.skipif(
    isinstance(toolchain.find_compiler(), native.Unavailable), reason="no C++ compiler here"
)

FLOATS = ctypes.c_void_p

KERNELS = r"""
#include <loom/parallel.h>
#include <loom/simd.h>
using namespace loom;

extern "C" int width() { return vf::width; }
extern "C" const char* isa() { return isa_name; }

// y holds one result per operation, each as long as a.
extern "C" void lanes(const float* a, const float* b, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += vf::width) {
    vf p = vf::load(a + i), q = vf::load(b + i);
    vf results[] = {exp(p), p + q, p - q, p * q, p / q, fma(p, q, p), fnma(p, q, p), max(p, q),
                    min(p, q), sqrt(p * p), round(p), select(p < q, p, vf(0.0f)),
                    select(p <= q, p, vf(0.0f)), select((p < q) & (vf(0.0f) < p), p, q),
                    select((p < q) | (vf(0.0f) < p), p, q)};
    int64_t k = 0;
    for (vf r : results) r.store(y + n * k++ + i);
  }
}
extern "C" float lane_sum(const float* a) { return sum(vf::load(a)); }
extern "C" int lane_truth(const float* a) {
  mask m = vf::load(a) < vf(0.0f);
  return any(m) + 2 * all(m);
}
extern "C" float ordered_sum(const float* x, int64_t n, int threads) {
  std::vector<float> parts(threads, 0.0f);
  parallel_ranges(n, threads, [&](int64_t begin, int64_t end, int t) {
    for (int64_t i = begin; i < end; ++i) parts[t] += x[i];
  });
  float total = 0;
  for (float part : parts) total += part;
  return total;
}
extern "C" void visits(int32_t* ranges, int32_t* items, int64_t n, int threads) {
  parallel_ranges(n, threads, [&](int64_t b, int64_t e, int) { while (b < e) ++ranges[b++]; });
  parallel_items(n, threads, [&](int64_t i, int) { ++items[i]; });
}
"""


@pytest.fixture(scope="module")
def kernel_source(tmp_path_factory):
    source = tmp_path_factory.mktemp("kernels") / "kernels.cpp"
    source.write_text(KERNELS, encoding="utf-8")
    return source


@pytest.mark.parametrize("level", toolchain.cpu_levels())
def test_simd_agrees_with_double_precision_at_every_level(kernel_source, monkeypatch, level):
    monkeypatch.setenv("LOOM_ISA", level)
    library = native.library("test_headers", sources=[kernel_source])
    assert isinstance(library, native.Library), library
    assert library.function("isa", [], ctypes.c_char_p)() == library.isa.encode() == level.encode()
    width = library.function("width", [], ctypes.c_int)()
    assert width == {"avx512": 16, "avx2": 8, "portable": 4}[level]

    rng = np.random.default_rng(0)
    a = np.concatenate([np.linspace(-87, 88, 1600), np.arange(-8, 8) + 0.5]).astype(np.float32)
    b = rng.permutation(a)
    b[::7] = a[::7]  # equal lanes, for < against <=
    n, y = len(a), np.empty((15, len(a)), np.float32)
    library.function("lanes", [FLOATS, FLOATS, FLOATS, ctypes.c_int64])(
        a.ctypes.data, b.ctypes.data, y.ctypes.data, n
    )
    p, q = a.astype(np.float64), b.astype(np.float64)
    exact = {1: p + q, 2: p - q, 3: p * q, 4: p / q, 9: np.abs(p)}
    for index, expected in exact.items():  # one rounding of the true result
        np.testing.assert_array_max_ulp(y[index], expected.astype(np.float32), maxulp=1)
    np.testing.assert_allclose(y[0], np.exp(p), rtol=2e-7)
    scale = np.abs(p * q) + np.abs(p)
    assert np.all(np.abs(y[5] - (p * q + p)) <= 2.0**-23 * scale)
    assert np.all(np.abs(y[6] - (p - p * q)) <= 2.0**-23 * scale)
    for index, expected in {
        7: np.maximum(a, b),
        8: np.minimum(a, b),
        10: np.rint(a),
        11: np.where(a < b, a, 0),
        12: np.where(a <= b, a, 0),
        13: np.where((a < b) & (a > 0), a, b),
        14: np.where((a < b) | (a > 0), a, b),
    }.items():
        np.testing.assert_array_equal(y[index], expected, err_msg=f"operation {index}")

    lanes = rng.normal(size=width).astype(np.float32)
    total = library.function("lane_sum", [FLOATS], ctypes.c_float)(lanes.ctypes.data)
    assert total == pytest.approx(math.fsum(lanes), abs=1e-6 * float(np.abs(lanes).sum()))
    truth = library.function("lane_truth", [FLOATS], ctypes.c_int)
    for negative, expected in ((0, 0), (1, 1), (width, 3)):
        lanes = np.ones(width, np.float32)
        lanes[:negative] = -1
        assert truth(lanes.ctypes.data) == expected


def test_parallel_loops_cover_every_item_once_and_reduce_in_a_fixed_order(
    kernel_source, monkeypatch
):
    monkeypatch.setenv("LOOM_ISA", "portable")
    library = native.library("test_headers", sources=[kernel_source])
    assert isinstance(library, native.Library), library
    visits = library.function("visits", [FLOATS, FLOATS, ctypes.c_int64, ctypes.c_int])
    for n, threads in ((0, 4), (1, 4), (3, 8), (1000, 1), (1000, 7)):
        counts = np.zeros((2, max(n, 1)), np.int32)
        visits(counts[0].ctypes.data, counts[1].ctypes.data, n, threads)
        assert np.all(counts[:, :n] == 1), (n, threads)
    x = np.random.default_rng(1).normal(size=20_000).astype(np.float32)
    total = library.function("ordered_sum", [FLOATS, ctypes.c_int64, ctypes.c_int], ctypes.c_float)
    sums = {total(x.ctypes.data, len(x), 3) for _ in range(30)}
    assert len(sums) == 1
    parts = [x[len(x) * t // 3 : len(x) * (t + 1) // 3] for t in range(3)]
    expected = np.float32(0)
    for part in parts:
        expected += np.add.accumulate(part)[-1]
    assert sums == {float(expected)}


REFUSED = """
import ctypes, resource, sys
visits = ctypes.CDLL(sys.argv[1]).visits
counts = ((ctypes.c_int32 * 1000) * 2)()
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + (1 << 20)  # no space for the stack of a thread
resource.setrlimit(resource.RLIMIT_AS, (room, room))
visits(counts[0], counts[1], ctypes.c_int64(1000), 8)
print(set(counts[0]) | set(counts[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_parallel_loops_do_all_work_where_no_thread_can_be_started(kernel_source, monkeypatch):
    monkeypatch.setenv("LOOM_ISA", "portable")
    library = native.library("test_headers", sources=[kernel_source])
    assert isinstance(library, native.Library), library
    command = [sys.executable, "-c", REFUSED, str(library.path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "{1}\n"), ended.stderr
