// Static work sharing over plain threads. The split depends only on the number of items and of
// threads, so a reduction in thread order is deterministic for a fixed thread count; no second
// OpenMP runtime competes with the one that torch brings.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace loom {

// Calls part(0) to part(threads - 1), each on a thread of its own. Where the system refuses a thread
// (a container's limit), the calling one does that part as well: slower, with the same result.
template <class Part>
void on_threads(int threads, Part&& part) {
  std::vector<std::thread> workers;
  workers.reserve(threads - 1);
  int started = 1;
  try {
    for (; started < threads; ++started) workers.emplace_back(part, started);
  } catch (const std::system_error&) {
  }
  part(0);
  for (int t = started; t < threads; ++t) part(t);
  for (auto& w : workers) w.join();
}

// Calls body(begin, end, thread) on contiguous parts of [0, n).
template <class Body>
void parallel_ranges(int64_t n, int threads, Body&& body) {
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, n)));
  on_threads(threads, [&](int t) { body(n * t / threads, n * (t + 1) / threads, t); });
}

// Calls body(item, thread) for each item, handing items out one by one as threads become free.
// Only for work whose result does not depend on which thread does it.
template <class Body>
void parallel_items(int64_t n, int threads, Body&& body) {
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, n)));
  std::atomic<int64_t> next{0};
  on_threads(threads, [&](int t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(i, t);
  });
}

}  // namespace loom
