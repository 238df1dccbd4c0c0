// One open connection: frames both ways. Which memory or wire carries them is a subclass's.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <list>
#include <vector>

#include "frame.h"

namespace moonshard::wire {

// What is larger is given back after each frame, so that an idle connection is small.
constexpr size_t KEPT_BYTES = size_t(1) << 22;
constexpr size_t MAX_PIECES_A_SEND = 512;

enum class Result { READY, AGAIN, ENDED, GONE, TOO_LARGE, FORGED };

// Used by one thread, but for `stop`. The descriptor is the caller's to close, after the link.
class Link {
 public:
  explicit Link(int fd) : fd_(fd) {}
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  virtual ~Link() = default;

  int fd() const { return fd_; }

  // READY: `frame()` of `size()` bytes stands until the next call. AGAIN only without `wait`; then the descriptor becomes
  // readable when there is more.
  virtual Result next(bool wait) = 0;
  const uint8_t* frame() const { return frame_; }
  size_t size() const { return size_; }

  // Whether `next` may find something although the descriptor is not readable.
  virtual bool has_more() const = 0;
  // After the descriptor became readable, before `next`.
  virtual void wake() {}
  // What arrived already is still read, then `next` says ENDED. From any thread.
  virtual void stop() { shutdown(fd_, SHUT_RD); }

  // Takes a frame in pieces. They must stay until it is sent, or forgotten.
  virtual void queue(int owner, const iovec* pieces, size_t count) {
    Unsent& own = add(owner);
    for (size_t i = 0; i < count; i++) own.length += pieces[i].iov_len;
    own.pieces.push_back({nullptr, 0});  // the length
    own.pieces.insert(own.pieces.end(), pieces, pieces + count);
    complete(own);
  }

  // Sends what there is room for. False: the connection broke.
  bool flush() {
    while (!unsent_.empty()) {
      Unsent& own = unsent_.front();
      ssize_t sent = write(&own.pieces[own.at], std::min(own.pieces.size() - own.at, MAX_PIECES_A_SEND));
      if (sent < 0) return false;
      if (sent == 0) return true;
      own.begun = true;
      for (; own.at < own.pieces.size() && size_t(sent) >= own.pieces[own.at].iov_len; own.at++)
        sent -= ssize_t(own.pieces[own.at].iov_len);
      if (own.at == own.pieces.size()) {
        if (own.sealed.room() > KEPT_BYTES) own.sealed.release();
        spare_.splice(spare_.begin(), unsent_, unsent_.begin());
      } else {
        own.pieces[own.at].iov_base = static_cast<uint8_t*>(own.pieces[own.at].iov_base) + sent;
        own.pieces[own.at].iov_len -= size_t(sent);
      }
    }
    return true;
  }

  // Sends a whole frame, however long that takes. False: the connection broke.
  bool send(const iovec* pieces, size_t count) {
    queue(0, pieces, count);
    while (flush()) {
      if (unsent_.empty()) return true;
      if (!await_room()) return false;
    }
    return false;
  }

  // Memory for a frame of at most `size` bytes that `commit` sends without a copy; null: use `send`.
  virtual uint8_t* begin(size_t) { return nullptr; }
  virtual void commit(size_t) {}

  bool has_unsent() const { return !unsent_.empty(); }
  // Whether the descriptor becomes writable when there is room for the rest; else it becomes readable.
  virtual bool polls_for_room() const { return has_unsent(); }
  // Whether `has_more` sees what arrives, without a system call.
  virtual bool in_memory() const { return false; }
  // Before answers are awaited: the descriptor becomes readable with the next one.
  virtual void arm() {}

  // The pieces of an owner may go after this. Frames that were not begun are never sent; returns their number. `begun`:
  // one was sent in part, so the link cannot go on.
  virtual int forget(int owner, bool& begun) {
    begun = !unsent_.empty() && unsent_.front().owner == owner && unsent_.front().begun;
    return int(unsent_.remove_if([&](const Unsent& one) { return one.owner == owner; }));
  }

 protected:
  struct Unsent {
    int owner = 0;
    bool begun = false;
    size_t at = 0, length = 0;
    std::vector<iovec> pieces;
    uint8_t head[64] = {}, tail[64] = {};
    Buffer sealed;
  };

  Unsent& add(int owner) {
    if (spare_.empty()) spare_.emplace_back();
    unsent_.splice(unsent_.end(), spare_, spare_.begin());
    Unsent& own = unsent_.back();
    own.owner = owner, own.begun = false, own.at = own.length = 0;
    own.pieces.clear();
    return own;
  }

  // Sets the pieces around a frame: its length, and what else the other side needs to cut it out.
  virtual void complete(Unsent& frame) = 0;
  // Some bytes of the pieces, 0: no room, -1: broken.
  virtual ssize_t write(const iovec* pieces, size_t count) = 0;
  virtual bool await_room() = 0;

  const int fd_;
  const uint8_t* frame_ = nullptr;
  size_t size_ = 0;
  std::list<Unsent> unsent_, spare_;  // their memory is used again
};

}  // namespace moonshard::wire
