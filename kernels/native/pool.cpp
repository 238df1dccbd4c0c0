// Worker threads of the kernels: few, kept for the life of the process, awake for a short time after each job.
#include <immintrin.h>

#include <chrono>
#include <mutex>
#include <thread>

#include "parallel.h"

namespace moonshard {
namespace {

// A decode step calls a kernel every few microseconds, while waking a sleeping thread takes tens of them. Spinning for
// longer than this would, with more threads than cores, starve the thread that is waited for.
constexpr auto AWAKE = std::chrono::microseconds(50);

template <class Ready>
bool wait_awake(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + AWAKE;
  do {
    for (int i = 0; i < 32; i++) {
      if (ready()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

class Pool {
 public:
  void run(int64_t threads, void (*job)(const void*), const void* context) {
    const std::unique_lock only(busy_, std::try_to_lock);
    if (!only) return job(context);
    for (; num_workers_ < threads - 1; num_workers_++) std::thread([this] { work(); }).detach();
    job_ = job;
    context_ = context;
    left_ = 0;
    tickets_ = int32_t(threads - 1);
    rounds_.fetch_add(1);
    rounds_.notify_all();
    job(context);
    const int32_t began = int32_t(threads - 1) - tickets_.exchange(0);
    wait_for(left_, began);
  }

 private:
  void work() {
    for (uint32_t seen = 0;;) {
      if (!wait_awake([&] { return rounds_.load() != seen; })) rounds_.wait(seen);
      seen = rounds_.load();
      int32_t ticket = tickets_.load();
      while (ticket > 0 && !tickets_.compare_exchange_weak(ticket, ticket - 1)) {
      }
      if (ticket <= 0) continue;
      job_(context_);
      left_.fetch_add(1);
      left_.notify_all();
    }
  }

  std::mutex busy_;  // locked by the caller whose job the workers run
  int64_t num_workers_ = 0;
  void (*job_)(const void*) = nullptr;
  const void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> rounds_{0};
  alignas(64) std::atomic<int32_t> tickets_{0};  // workers that may still begin
  alignas(64) std::atomic<int32_t> left_{0};     // workers that have finished
};

}  // namespace

void run_with_workers(int64_t threads, void (*job)(const void*), const void* context) {
  static Pool* const pool = new Pool;  // never destroyed: its threads may outlive the static objects
  pool->run(threads, job, context);
}

void wait_for(std::atomic<int32_t>& value, int32_t wanted) {
  if (wait_awake([&] { return value.load() == wanted; })) return;
  for (int32_t now = value.load(); now != wanted; now = value.load()) value.wait(now);
}

}  // namespace moonshard
