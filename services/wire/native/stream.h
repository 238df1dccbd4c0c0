// Frames in a stream of bytes over a socket, each behind its length (u32).
#pragma once

#include "link.h"

namespace moonshard::wire {

class StreamLink : public Link {
 public:
  using Link::Link;

  Result next(bool wait) override {
    drop();
    needs_more_ = false;
    for (;;) {
      size_t needed = LENGTH_BYTES;
      if (got_ >= LENGTH_BYTES) {
        uint32_t length;
        std::memcpy(&length, buffer_.length(), sizeof length);
        if (length > MAX_FRAME_BYTES) return Result::TOO_LARGE;
        needed += length;
        if (got_ >= needed) {
          taken_ = needed;
          frame_ = buffer_.frame(), size_ = length;
          return Result::READY;
        }
      }
      if (!buffer_.grow(needed > 65536 ? needed : 65536, got_)) return Result::TOO_LARGE;
      // Not past a large frame: what follows it would have to be moved.
      const size_t room = (needed > LARGE_BYTES ? needed : buffer_.room()) - got_;
      const ssize_t more = recv(fd_, buffer_.length() + got_, room, wait ? 0 : MSG_DONTWAIT);
      if (more < 0 && errno == EINTR) continue;
      needs_more_ = more < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
      if (more < 0) return needs_more_ ? Result::AGAIN : Result::GONE;
      if (more == 0) return got_ ? Result::GONE : Result::ENDED;
      got_ += size_t(more);
    }
  }

  bool has_more() const override { return got_ > taken_ && !needs_more_; }

 protected:
  uint8_t* received() { return buffer_.frame(); }

  void complete(Unsent& frame) override {
    const uint32_t length = uint32_t(frame.length);
    std::memcpy(frame.head, &length, sizeof length);
    frame.pieces.front() = {frame.head, LENGTH_BYTES};
  }

  ssize_t write(const iovec* pieces, size_t count) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(pieces), message.msg_iovlen = count;
    for (;;) {
      const ssize_t sent = sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent >= 0) return sent;
      if (errno == EINTR) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
    }
  }

  bool await_room() override {
    pollfd room{fd_, POLLOUT, 0};
    return poll(&room, 1, -1) >= 0 || errno == EINTR;
  }

 private:
  static constexpr size_t LARGE_BYTES = size_t(1) << 18;

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
  bool needs_more_ = false;
};

}  // namespace moonshard::wire
