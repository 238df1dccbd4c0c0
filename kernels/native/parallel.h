// Threads and scratch memory of the kernels.
//
// OpenMP through the very libgomp that torch has loaded (same SONAME), so a process has one set of workers.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>

namespace moonshard {
namespace {

// Runs body() on every thread of a team.
template <class Body>
void parallel(int64_t threads, const Body& body) {
  if (threads <= 1) {
    body();
    return;
  }
#pragma omp parallel num_threads(int(threads))
  body();
}

// Waits until the whole team is here; nothing to wait for outside `parallel`.
inline void barrier() {
#pragma omp barrier
}

// Hands out task numbers to the threads of a team, first come first served.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}
  template <class Body>
  void run(const Body& body) {
    for (int64_t task = next_.fetch_add(1, std::memory_order_relaxed); task < count_;
         task = next_.fetch_add(1, std::memory_order_relaxed))
      body(task);
  }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
  const int64_t count_;
};

// Memory that a thread keeps from call to call: fresh pages cost more than the arithmetic done in them.
// Each user takes its own `Purpose`, so that one call can hold several.
template <class Purpose, class T>
T* scratch(int64_t count) {
  struct Buffer {
    void* data = nullptr;
    int64_t bytes = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  const int64_t bytes = (count * int64_t(sizeof(T)) + 4095) / 4096 * 4096;
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.data = std::aligned_alloc(4096, size_t(bytes));
    buffer.bytes = buffer.data ? bytes : 0;
    if (!buffer.data) std::abort();
  }
  return static_cast<T*>(buffer.data);
}

}  // namespace
}  // namespace moonshard
