// Work in blocks over several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace bev {

// The blocks of one call, in a span of neighbours for each worker. Two that write next to each other would both fault,
// and zero, the same fresh page of 2 MB: so each keeps to its own span until that is done, and then helps with others.
class Blocks {
  public:
    Blocks(int64_t blocks, int spans) : spans_(spans), left_(blocks) {
        for (int i = 0; i < spans; ++i) {
            spans_[i].next = blocks * i / spans;
            spans_[i].end = blocks * (i + 1) / spans;
        }
    }

    // Calls body(block) until no block is left to begin.
    template <class Body>
    void work(int own, const Body& body) {
        const int spans = static_cast<int>(spans_.size());
        for (int i = 0; i < spans; ++i) {
            Span& span = spans_[(own + i) % spans];
            for (int64_t block; (block = span.next.fetch_add(1)) < span.end;) {
                body(block);
                if (--left_ == 0) {
                    const std::lock_guard<std::mutex> lock(mutex_);
                    done_.notify_one();
                }
            }
        }
    }

    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return left_ == 0; });
    }

  private:
    struct alignas(64) Span {  // a cache line each
        std::atomic<int64_t> next;
        int64_t end;
    };
    std::vector<Span> spans_;
    std::atomic<int64_t> left_;
    std::mutex mutex_;
    std::condition_variable done_;
};

// Calls body(first, last) for blocks of [0, n). Who does which block must change no result. body must not throw.
template <class Body>
void parallel_for(int64_t n, int64_t block, int threads, const Body& body) {
    const int64_t blocks = (n + block - 1) / block;
    const int workers = static_cast<int>(std::clamp<int64_t>(blocks, 1, std::max(threads, 1)));
    const auto shared = std::make_shared<Blocks>(blocks, workers);
    const auto work = [&body, shared, n, block](int own) {
        shared->work(own, [&](int64_t i) { body(i * block, std::min((i + 1) * block, n)); });
    };
    // The call waits for its blocks, not for its threads. Where the cores are busy (torch's idle threads alone spin for
    // milliseconds) a new thread may start only when all is done; it then touches neither body nor its data.
    try {
        for (int i = 1; i < workers; ++i) std::thread(work, i).detach();
    } catch (const std::system_error&) {
        // The system has no more threads to give: fewer do the work.
    }
    work(0);
    shared->wait();
}

}  // namespace bev
