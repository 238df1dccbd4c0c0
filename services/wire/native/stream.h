// Frames in a stream of bytes, each behind its length: a blocking reader and writer of one socket.
#pragma once

#include <cerrno>
#include <sys/socket.h>
#include <sys/uio.h>

#include "frame.h"

namespace moonshard::wire {

// What is larger is given back after each frame, so that an idle connection is small.
constexpr size_t KEPT_BYTES = size_t(1) << 20;

enum class Result { READY, AGAIN, ENDED, GONE, TOO_LARGE };

class Reader {
 public:
  // READY: `frame()` of `size()` bytes stands until the next call. AGAIN only with MSG_DONTWAIT.
  Result next(int fd, int flags) {
    drop();
    for (;;) {
      size_t needed = LENGTH_BYTES;
      if (got_ >= LENGTH_BYTES) {
        uint32_t length;
        std::memcpy(&length, buffer_.length(), sizeof length);
        if (length > MAX_FRAME_BYTES) return Result::TOO_LARGE;
        needed += length;
        if (got_ >= needed) {
          taken_ = needed;
          return Result::READY;
        }
      }
      if (!buffer_.grow(needed > 65536 ? needed : 65536, got_)) return Result::TOO_LARGE;
      // Not past a large frame: what follows it would have to be moved.
      const size_t room = (needed > KEPT_BYTES ? needed : buffer_.room()) - got_;
      const ssize_t more = recv(fd, buffer_.length() + got_, room, flags);
      if (more < 0 && errno == EINTR) continue;
      if (more < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? Result::AGAIN : Result::GONE;
      if (more == 0) return got_ ? Result::GONE : Result::ENDED;
      got_ += size_t(more);
    }
  }

  const uint8_t* frame() const { return buffer_.frame(); }
  size_t size() const { return taken_ - LENGTH_BYTES; }
  // Whether bytes behind that frame are in memory already.
  bool has_more() const { return got_ > taken_; }

 private:
  void drop() {
    if (!taken_) return;
    got_ -= taken_;
    if (got_)
      std::memmove(buffer_.length(), buffer_.length() + taken_, got_);
    else if (buffer_.room() > KEPT_BYTES)
      buffer_.release();
    taken_ = 0;
  }

  Buffer buffer_;
  size_t got_ = 0, taken_ = 0;
};

inline bool send_all(int fd, const uint8_t* data, size_t size) {
  while (size) {
    const ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    data += sent, size -= size_t(sent);
  }
  return true;
}

}  // namespace moonshard::wire
