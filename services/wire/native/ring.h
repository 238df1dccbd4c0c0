// Frames through memory that two processes share: a ring for each direction, and a Unix socket that wakes and ends.
//
// The memory begins with a page of counters; each ring's bytes are mapped twice in a row, so that a frame is in one piece
// wherever it lies. Counters of the other side are hostile: each is read once and compared before it is used, and no
// address is taken from the memory. A frame's own bytes may change while they are read, so its reader copies whatever it
// checks. A byte on the socket says that a sleeper has something to do; the socket's end, that the peer is gone.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "link.h"

namespace moonshard::wire {

constexpr size_t RING_PAGE = 4096, RING_RECORD = 64;
constexpr size_t MIN_RING_BYTES = size_t(1) << 16, MAX_RING_BYTES = size_t(1) << 26;

// Bytes since the beginning: `head` written, `tail` read. A sleeper's flag asks for a byte on the socket.
struct RingCounters {
  alignas(64) std::atomic<uint64_t> head;
  std::atomic<uint32_t> reader_sleeps;
  alignas(64) std::atomic<uint64_t> tail;
  std::atomic<uint32_t> writer_sleeps;
};
static_assert(2 * sizeof(RingCounters) <= RING_PAGE);

class RingLink final : public Link {
 public:
  // Maps `memory`, a sealed memfd of a page and two rings. Null: it is none, or another size.
  static std::unique_ptr<RingLink> open(int fd, int memory, bool is_shard) {
    struct stat found;
    const int seals = fcntl(memory, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(memory, &found)) return nullptr;
    const size_t bytes = size_t(found.st_size), ring = (bytes - RING_PAGE) / 2;
    if (bytes < RING_PAGE || ring < MIN_RING_BYTES || ring > MAX_RING_BYTES || ring % RING_PAGE || bytes != RING_PAGE + 2 * ring)
      return nullptr;
    void* const room = mmap(nullptr, room_bytes(ring), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) return nullptr;
    std::unique_ptr<RingLink> link(new RingLink(fd, static_cast<uint8_t*>(room), ring, is_shard));
    const auto map = [&](size_t at, size_t count, size_t from) {
      return mmap(link->memory_ + at, count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, memory,
                  off_t(from)) != MAP_FAILED;
    };
    bool mapped = map(0, RING_PAGE, 0);
    for (int i = 0; i < 4; i++) mapped &= map(RING_PAGE + i * ring, ring, RING_PAGE + i / 2 * ring);
    if (!mapped) return nullptr;
    link->in_.counters->reader_sleeps = 1;
    return link;
  }

  ~RingLink() override { munmap(memory_, room_bytes(bytes_)); }

  Result next(bool wait) override {
    release();
    for (;;) {
      if (limit_.load() != NO_LIMIT) ended_ = true;
      Result result = look();
      if (result == Result::AGAIN && !ended_) arm(), result = look();
      if (result != Result::AGAIN) return result;
      if (ended_) return used() || large_left_ ? Result::GONE : Result::ENDED;
      if (!wait) return result;
      listen(true);
    }
  }

  bool has_more() const override { return in_.counters->head.load() != seen_; }
  void wake() override { listen(false); }
  void arm() override { in_.counters->reader_sleeps.store(1); }
  uint8_t* begin(size_t size) override {
    const size_t room = free_bytes();
    if (has_unsent() || room > bytes_ || record_bytes(size) > room) return nullptr;
    return out_.bytes + head_ % bytes_ + RING_RECORD;
  }

  void commit(size_t size) override {
    const uint64_t length = size;
    std::memcpy(out_.bytes + head_ % bytes_, &length, sizeof length);
    publish(record_bytes(size));
  }

  bool polls_for_room() const override { return false; }
  bool in_memory() const override { return true; }

  void stop() override {
    limit_.store(in_.counters->head.load());
    shutdown(fd_, SHUT_RD);
  }

 protected:
  void complete(Unsent& frame) override {
    const uint64_t length = frame.length;
    std::memcpy(frame.head, &length, sizeof length);
    frame.pieces.front() = {frame.head, RING_RECORD};
    if (const size_t odd = frame.length % RING_RECORD) frame.pieces.push_back({frame.tail, RING_RECORD - odd});
  }

  ssize_t write(const iovec* pieces, size_t count) override {
    size_t room = free_bytes();
    if (!room) {
      out_.counters->writer_sleeps.store(1);
      room = free_bytes();
    }
    if (room > bytes_) return -1;  // the peer's counter makes no sense
    size_t done = 0;
    for (; count && done < room; pieces++, count--) {
      const size_t some = std::min(pieces->iov_len, room - done);
      if (some) std::memcpy(out_.bytes + (head_ + done) % bytes_, pieces->iov_base, some);
      done += some;
    }
    if (done) publish(done);
    return ssize_t(done);
  }

  bool await_room() override {
    if (!ended_) listen(true);
    if (!ended_) return true;
    // Nothing can be read from the socket any more, but the peer may still be there.
    pollfd peer{fd_, 0, 0};
    return poll(&peer, 1, 1) >= 0 && !(peer.revents & (POLLHUP | POLLERR));
  }

 private:
  // The page, both rings twice, and a page behind them that nobody can touch.
  static size_t room_bytes(size_t ring) { return RING_PAGE + 4 * ring + RING_PAGE; }

  struct Ring {
    RingCounters* counters;
    uint8_t* bytes;
  };

  RingLink(int fd, uint8_t* memory, size_t bytes, bool is_shard) : Link(fd), memory_(memory), bytes_(bytes) {
    RingCounters* const counters = reinterpret_cast<RingCounters*>(memory);
    const Ring to_shard{counters, memory + RING_PAGE}, to_caller{counters + 1, memory + RING_PAGE + 2 * bytes};
    in_ = is_shard ? to_shard : to_caller, out_ = is_shard ? to_caller : to_shard;
  }

  static size_t record_bytes(size_t size) {
    return RING_RECORD + (size + RING_RECORD - 1) / RING_RECORD * RING_RECORD;
  }

  void publish(size_t count) {
    head_ += count;
    out_.counters->head.store(head_);
    if (out_.counters->reader_sleeps.load() && out_.counters->reader_sleeps.exchange(0)) ring();
  }

  uint64_t used() const { return std::min(in_.counters->head.load(), limit_.load()) - tail_; }
  // More than the ring has: the peer's counter makes no sense.
  size_t free_bytes() const { return bytes_ - (head_ - out_.counters->tail.load()); }

  // A frame of at most half a ring is read where it lies; a larger one is copied out while it comes.
  Result look() {
    if (large_left_) return take_large();
    const uint64_t there = used();
    if (there > bytes_) return Result::FORGED;
    seen_ = tail_ + there;
    if (there < RING_RECORD) return Result::AGAIN;
    const uint8_t* const record = in_.bytes + tail_ % bytes_;
    uint64_t length;
    std::memcpy(&length, record, sizeof length);
    if (length > MAX_FRAME_BYTES) return Result::TOO_LARGE;
    const size_t needed = record_bytes(length);
    if (needed <= bytes_ / 2) {
      if (there < needed) return Result::AGAIN;
      frame_ = record + RING_RECORD, size_ = length, taken_ = needed;
      seen_ = tail_ + needed;
      return Result::READY;
    }
    if (!large_.grow(LENGTH_BYTES + needed)) return Result::TOO_LARGE;
    size_ = length, large_left_ = needed - RING_RECORD, large_got_ = 0;
    consume(RING_RECORD);
    return take_large();
  }

  Result take_large() {
    while (const uint64_t there = used()) {
      if (there > bytes_) return Result::FORGED;
      const size_t some = std::min<size_t>(there, large_left_);
      seen_ = tail_ + some;
      std::memcpy(large_.frame() + large_got_, in_.bytes + tail_ % bytes_, some);
      large_got_ += some, large_left_ -= some;
      consume(some);
      if (large_left_) continue;
      frame_ = large_.frame();
      return Result::READY;
    }
    return Result::AGAIN;
  }

  // The frame that was read last makes room.
  void release() {
    if (taken_) consume(std::exchange(taken_, 0));
    if (!large_left_ && large_.room() > KEPT_BYTES) large_.release();
  }

  void consume(size_t count) {
    tail_ += count;
    in_.counters->tail.store(tail_);
    if (in_.counters->writer_sleeps.load() && in_.counters->writer_sleeps.exchange(0)) ring();
  }

  void ring() { ::send(fd_, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); }  // a full socket wakes too

  void listen(bool wait) {
    uint8_t bytes[64];
    const ssize_t count = recv(fd_, bytes, sizeof bytes, wait ? 0 : MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) ended_ = true;
  }

  uint8_t* const memory_;
  const size_t bytes_;  // of one ring
  Ring in_{}, out_{};
  static constexpr uint64_t NO_LIMIT = std::numeric_limits<uint64_t>::max();
  uint64_t tail_ = 0, head_ = 0;  // our own; what lies in the memory is for the peer
  uint64_t seen_ = 0;  // bytes up to here are no news
  std::atomic<uint64_t> limit_{NO_LIMIT};  // bytes behind it arrived after `stop`
  size_t taken_ = 0, large_left_ = 0, large_got_ = 0;
  Buffer large_;
  bool ended_ = false;
};

}  // namespace moonshard::wire
