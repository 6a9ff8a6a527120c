// Static work sharing over plain threads. The split depends only on the number of items and of
// threads, so a reduction in thread order is deterministic for a fixed thread count; no second
// OpenMP runtime competes with the one that torch brings.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace loom {

// Calls body(begin, end, thread) on contiguous parts of [0, n).
template <class Body>
void parallel_ranges(int64_t n, int threads, Body&& body) {
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, n)));
  auto part = [&](int t) { body(n * t / threads, n * (t + 1) / threads, t); };
  std::vector<std::thread> workers;
  workers.reserve(threads - 1);
  for (int t = 1; t < threads; ++t) workers.emplace_back(part, t);
  part(0);
  for (auto& w : workers) w.join();
}

// Calls body(item, thread) for each item, handing items out one by one as threads become free.
// Only for work whose result does not depend on which thread does it.
template <class Body>
void parallel_items(int64_t n, int threads, Body&& body) {
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, n)));
  std::atomic<int64_t> next{0};
  auto work = [&](int t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(i, t);
  };
  std::vector<std::thread> workers;
  workers.reserve(threads - 1);
  for (int t = 1; t < threads; ++t) workers.emplace_back(work, t);
  work(0);
  for (auto& w : workers) w.join();
}

}  // namespace loom
