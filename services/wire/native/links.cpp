// Links for Python: made of connected sockets, and used directly where Python computes the answers.
#include <new>

#include "ring.h"
#include "seal.h"

using namespace moonshard::wire;

extern "C" {

Link* wire_link_stream(int fd) { return new (std::nothrow) StreamLink(fd); }

// `memory`: a sealed memfd, the caller's to close. Null: it does not fit.
Link* wire_link_ring(int fd, int memory, int is_shard) { return RingLink::open(fd, memory, is_shard).release(); }

// Keys of 32 bytes. Null: there is no libcrypto.
Link* wire_link_sealed(int fd, const uint8_t* send_key, const uint8_t* receive_key) {
  const Crypto* const crypto = Crypto::find();
  return crypto ? new (std::nothrow) SealedLink(fd, *crypto, send_key, receive_key) : nullptr;
}

void wire_link_delete(Link* link) { delete link; }
void wire_link_stop(Link* link) { link->stop(); }

// The next frame, which stands until the next call. Returns a Result; AGAIN only without `wait`.
int wire_link_receive(Link* link, int wait, const uint8_t** frame, size_t* size) {
  if (!wait) link->wake();
  const Result result = link->next(wait);
  *frame = link->frame(), *size = link->size();
  return int(result);
}

// Returns 1 once the frame is sent, 0 where the connection broke.
int wire_link_send(Link* link, const uint8_t* frame, size_t size) {
  const iovec piece{const_cast<uint8_t*>(frame), size};
  return link->send(&piece, 1);
}

// Queues a frame, whose bytes must stay until `flush` says that all is sent.
void wire_link_queue(Link* link, const uint8_t* frame, size_t size) {
  const iovec piece{const_cast<uint8_t*>(frame), size};
  link->queue(0, &piece, 1);
}

// 0: the connection broke, 1: all is sent, 2: more when the descriptor is writable, 3: more when it is readable.
int wire_link_flush(Link* link) {
  if (!link->flush()) return 0;
  return !link->has_unsent() ? 1 : link->polls_for_room() ? 2 : 3;
}

// The file of libcrypto; null: there is none.
const char* wire_cipher_path() {
  const Crypto* const crypto = Crypto::find();
  return crypto ? crypto->path : nullptr;
}

}  // extern "C"
