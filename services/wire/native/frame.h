// The frames of the hot wire (services/wire/frames.py describes them), and memory for them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace moonshard::wire {

constexpr char MAGIC[4] = {'M', 'S', 'E', 'X'};
constexpr uint8_t VERSION = 2;
constexpr size_t MAX_FRAME_BYTES = size_t(1) << 29;
constexpr size_t MAX_MESSAGE_BYTES = 2048;
constexpr size_t LENGTH_BYTES = 4;  // in front of every frame on a socket

enum Kind : uint8_t { REQUEST = 1, PARTIAL = 2, ERROR = 3 };

struct Name {
  uint64_t epoch, call, step;
  uint32_t layer, micro_batch;
  bool operator==(const Name&) const = default;
};

struct Header {
  char magic[4];
  uint8_t version, kind, dtype, zero;
  Name name;
  uint32_t tokens, top_k, hidden;
  uint8_t reserved[12];
};
static_assert(sizeof(Header) == 64);

// Numbers in float64 for which a frame has room beside its header and what a link adds.
constexpr uint64_t MAX_SUMS = (MAX_FRAME_BYTES - 2 * sizeof(Header)) / sizeof(double);

inline Header header_of(const Name& name, Kind kind, uint8_t dtype, uint32_t tokens, uint32_t top_k, uint32_t hidden) {
  Header header{};
  std::memcpy(header.magic, MAGIC, sizeof MAGIC);
  header.version = VERSION, header.kind = kind, header.dtype = dtype;
  header.name = name, header.tokens = tokens, header.top_k = top_k, header.hidden = hidden;
  return header;
}

// Hidden states are F32 or BF16, sums F64 or, in steps, I32.
enum Dtype : uint8_t { F32 = 0, BF16 = 1, F64 = 2, I32 = 3 };

inline size_t bytes_of_number(uint8_t dtype) {
  constexpr size_t BYTES[] = {4, 2, 8, 4};
  return BYTES[dtype];
}

// Bytes behind the header of a request; 128 bits, because four numbers of a hostile header may overflow 64.
inline unsigned __int128 request_bytes(const Header& h) {
  const unsigned __int128 tokens = h.tokens;
  return tokens * h.top_k * 8 + tokens * h.hidden * bytes_of_number(h.dtype);
}

// Memory aligned for the kernels. `length` 4 bytes before a multiple of 64, so that the frame behind it is aligned.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(memory_); }

  uint8_t* length() const { return memory_ + ALIGNMENT - LENGTH_BYTES; }
  uint8_t* frame() const { return memory_ + ALIGNMENT; }
  size_t room() const { return room_; }  // from `length` on

  // False where there is no memory.
  bool grow(size_t room, size_t keep = 0) {
    if (room <= room_) return true;
    const size_t bytes = (room + 2 * ALIGNMENT + 65535) / 65536 * 65536;
    uint8_t* fresh = static_cast<uint8_t*>(std::aligned_alloc(ALIGNMENT, bytes));
    if (!fresh) return false;
    if (keep) std::memcpy(fresh + ALIGNMENT - LENGTH_BYTES, length(), keep);
    std::free(memory_);
    memory_ = fresh, room_ = bytes - ALIGNMENT;
    return true;
  }

  void release() {
    std::free(memory_);
    memory_ = nullptr, room_ = 0;
  }

 private:
  static constexpr size_t ALIGNMENT = 64;
  uint8_t* memory_ = nullptr;
  size_t room_ = 0;
};

}  // namespace moonshard::wire
