// Work in blocks over several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace bev {

// Calls body(first, last) for blocks of [0, n). Who does which block must change no result.
template <class Body>
void parallel_for(int64_t n, int64_t block, int threads, const Body& body) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t first; (first = next.fetch_add(block)) < n;) body(first, std::min(first + block, n));
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, (n + block - 1) / block); ++i) others.emplace_back(work);
    } catch (const std::system_error&) {
        // The system has no more threads to give: fewer do the work.
    }
    work();
    for (auto& other : others) other.join();
}

}  // namespace bev
