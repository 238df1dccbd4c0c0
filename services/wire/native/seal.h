// Frames in a stream of bytes, each sealed with AES-256-GCM by the libcrypto that Python's ssl uses.
//
//     length u32 | the frame, encrypted | tag 16 bytes
//
// The length is readable but authenticated; everything behind it is encrypted. The nonce counts frames, with a key for
// each direction of each connection, so a frame that was changed, repeated, left out or moved does not open, and the link
// ends.
#pragma once

#include <dlfcn.h>

#include "stream.h"

namespace moonshard::wire {

constexpr size_t KEY_BYTES = 32, TAG_BYTES = 16, NONCE_BYTES = 12;

// The functions of libcrypto, if there is one.
struct Crypto {
  void* (*context_new)();
  void (*context_free)(void*);
  const void* (*cipher)();
  int (*begin)(void*, const void*, void*, const uint8_t*, const uint8_t*, int);
  int (*update)(void*, uint8_t*, int*, const uint8_t*, int);
  int (*end)(void*, uint8_t*, int*);
  int (*control)(void*, int, int, void*);
  const char* path;

  // Null: there is none.
  static const Crypto* find() {
    static const Crypto found = load();
    return found.path ? &found : nullptr;
  }

 private:
  static Crypto load() {
    Crypto c{};
    void* library = nullptr;
    for (const char* name : {"libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so"})
      if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) return c;
    const auto get = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    if (!get(c.context_new, "EVP_CIPHER_CTX_new") || !get(c.context_free, "EVP_CIPHER_CTX_free") ||
        !get(c.cipher, "EVP_aes_256_gcm") || !get(c.begin, "EVP_CipherInit_ex") || !get(c.update, "EVP_CipherUpdate") ||
        !get(c.end, "EVP_CipherFinal_ex") || !get(c.control, "EVP_CIPHER_CTX_ctrl"))
      return Crypto{};
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(c.cipher), &info)) c.path = info.dli_fname;
    return c;
  }
};

// One direction of one connection.
class Cipher {
 public:
  Cipher(const Crypto& crypto, const uint8_t* key, bool seals) : crypto_(crypto), seals_(seals) {
    context_ = crypto.context_new();
    ready_ = context_ && crypto.begin(context_, crypto.cipher(), nullptr, key, nullptr, seals) == 1;
  }
  Cipher(const Cipher&) = delete;
  Cipher& operator=(const Cipher&) = delete;
  ~Cipher() { crypto_.context_free(context_); }

  // Begins the next frame with the bytes that stay readable.
  bool begin(const uint8_t* plain, size_t size) {
    uint8_t nonce[NONCE_BYTES] = {};
    std::memcpy(nonce, &count_, sizeof count_);
    int done;
    return ready_ && ++count_ && crypto_.begin(context_, nullptr, nullptr, nullptr, nonce, seals_) == 1 &&
           crypto_.update(context_, nullptr, &done, plain, int(size)) == 1;
  }

  bool add(uint8_t* out, const uint8_t* in, size_t size) {
    int done;
    return !size || crypto_.update(context_, out, &done, in, int(size)) == 1;
  }

  bool finish(uint8_t* tag) {
    uint8_t none[16];
    int done;
    if (!seals_ && crypto_.control(context_, SET_TAG, TAG_BYTES, tag) != 1) return false;
    if (crypto_.end(context_, none, &done) != 1) return false;
    return !seals_ || crypto_.control(context_, GET_TAG, TAG_BYTES, tag) == 1;
  }

 private:
  static constexpr int GET_TAG = 0x10, SET_TAG = 0x11;
  const Crypto& crypto_;
  const bool seals_;
  void* context_ = nullptr;
  bool ready_ = false;
  uint64_t count_ = 0;
};

class SealedLink final : public StreamLink {
 public:
  SealedLink(int fd, const Crypto& crypto, const uint8_t* send_key, const uint8_t* receive_key)
      : StreamLink(fd), seal_(crypto, send_key, true), open_(crypto, receive_key, false) {}

  Result next(bool wait) override {
    const Result result = StreamLink::next(wait);
    if (result != Result::READY) return result;
    if (size_ < TAG_BYTES) return Result::FORGED;
    size_ -= TAG_BYTES;
    if (!open_.begin(received() - LENGTH_BYTES, LENGTH_BYTES) || !open_.add(received(), received(), size_) ||
        !open_.finish(received() + size_))
      return Result::FORGED;
    return result;
  }

  // The sealed frame is a copy, so the pieces may go at once.
  void queue(int owner, const iovec* pieces, size_t count) override {
    size_t size = 0;
    for (size_t i = 0; i < count; i++) size += pieces[i].iov_len;
    Unsent& own = add(owner);
    Buffer& memory = own.sealed;
    const uint32_t length = uint32_t(size + TAG_BYTES);
    if (!memory.grow(LENGTH_BYTES + length) || !seal(memory, length, pieces, count)) broken_ = true;
    own.pieces = {{memory.length(), LENGTH_BYTES + length}};
  }

  // A number that was used cannot be taken back: the frame is sent, and its answer is for nobody.
  int forget(int, bool& begun) override {
    begun = false;
    return 0;
  }

 protected:
  ssize_t write(const iovec* pieces, size_t count) override {
    return broken_ ? -1 : StreamLink::write(pieces, count);
  }

 private:
  bool seal(Buffer& memory, uint32_t length, const iovec* pieces, size_t count) {
    std::memcpy(memory.length(), &length, sizeof length);
    if (!seal_.begin(memory.length(), LENGTH_BYTES)) return false;
    uint8_t* at = memory.frame();
    for (size_t i = 0; i < count; at += pieces[i].iov_len, i++)
      if (!seal_.add(at, static_cast<const uint8_t*>(pieces[i].iov_base), pieces[i].iov_len)) return false;
    return seal_.finish(at);
  }

  Cipher seal_, open_;
  bool broken_ = false;
};

}  // namespace moonshard::wire
