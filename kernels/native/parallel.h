// Phases of tasks for several threads, and scratch memory.
//
// Work is a sequence of phases, each with numbered tasks. A phase begins when all tasks of the phase before are done,
// not when all threads have arrived: if the system does not run a thread, the others do its tasks.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <tuple>
#include <utility>

namespace moonshard {

// pool.cpp: runs job(context) on this thread and on up to threads - 1 workers, those that wake in time; on this thread
// alone while another call uses the workers. Returns when every worker that began has returned.
void run_with_workers(int64_t threads, void (*job)(const void*), const void* context);

// Waits until value == wanted: first spinning for a short time, then asleep.
void wait_for(std::atomic<int32_t>& value, int32_t wanted);

namespace {

// Tasks 0 .. count - 1; each thread takes the next one.
template <class Body>
class Phase {
 public:
  Phase(int64_t count, Body body) : count_(int32_t(count)), body_(std::move(body)) {}
  Phase(Phase&& other) : count_(other.count_), body_(std::move(other.body_)) {}

  void run_alone() const {
    for (int32_t task = 0; task < count_; task++) body_(int64_t(task));
  }
  // Returns when all tasks are done, by any thread.
  void run_together() const {
    for (int32_t task = next_.fetch_add(1); task < count_; task = next_.fetch_add(1)) {
      body_(int64_t(task));
      if (done_.fetch_add(1) + 1 == count_) done_.notify_all();
    }
    wait_for(done_, count_);
  }
  bool worth_sharing() const { return count_ > 1; }

 private:
  const int32_t count_;
  const Body body_;
  alignas(64) mutable std::atomic<int32_t> next_{0};
  alignas(64) mutable std::atomic<int32_t> done_{0};
};

// Runs phases one after another on up to `threads` threads.
template <class... Bodies>
void parallel(int64_t threads, Phase<Bodies>... phases) {
  if (threads <= 1 || !(phases.worth_sharing() || ...)) {
    (phases.run_alone(), ...);
    return;
  }
  const auto all = std::forward_as_tuple(phases...);
  using All = decltype(all);
  run_with_workers(
      threads,
      [](const void* context) {
        std::apply([](auto&... phase) { (phase.run_together(), ...); }, *static_cast<All*>(context));
      },
      &all);
}

// Memory that a thread keeps from call to call, because touching fresh pages costs more than the arithmetic in them.
// Each use has its own `Purpose`, so that a call can use several at once.
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
