// The attention side of the hot wire: a batch split by expert shard, sent, its answers received and summed in order.
//
// Python opens the sockets, chooses the replica of each shard and decides what follows a failure; native code tells it by
// events. Used by one thread. Answers are checked as if their sender were hostile: length, header, call and shape.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "link.h"
#include "sums.h"

using namespace moonshard::wire;

extern "C" {

struct Event {
  int32_t kind, link, handle, shard;
};
}

namespace {

enum EventKind : int32_t {
  ANSWERED = 1,   // the part has its sums
  ENDED = 2,      // the link was closed by the other side, or broke
  NONSENSE = 3,   // `text` says why the link cannot be trusted
  REFUSED = 4,    // `text` is the shard's complaint about the part
  DROPPED = 5,    // an answer to no call
  MISSHAPEN = 6,  // sums of another shape than the part's; `text` says which
};

constexpr int MAX_LINKS = 256;
constexpr size_t MAX_EVENTS = 64;

struct Part {
  Header head{};
  std::vector<int32_t> ids, rows;  // rows: the token of each row, empty where all tokens travel
  std::vector<float> weights;
  std::vector<iovec> frame;  // points into this part and into the caller's tensors
  size_t frame_bytes = 0;
  bool used = false, waits = false;
  std::vector<uint8_t> kept;  // sums as they came, copied out of their link; its memory is used again
  const uint8_t* sums = nullptr;  // there, or in the memory of the link at `held`
  int held = -1;
  uint8_t sums_dtype = F64;
};

struct Call {
  bool used = false;
  uint32_t tokens = 0, hidden = 0;
  int missing = 0;
  std::vector<Part> parts;
};

struct OpenLink {
  std::unique_ptr<Link> link;
  Part* holder = nullptr;  // its sums lie in the link's memory until the next frame is received
  int owes = 0;  // answers
};

using Clock = std::chrono::steady_clock;

// Waiting awake pays only while answers come sooner than a sleeper could be woken.
class Patience {
 public:
  void set(std::chrono::nanoseconds budget) { budget_ = budget, usual_ = {}; }
  bool lasts(Clock::duration waited) const { return usual_ <= budget_ && waited < budget_; }
  void learn(Clock::duration waited) { usual_ += (std::min<Clock::duration>(waited, 8 * budget_) - usual_) / 8; }

 private:
  Clock::duration budget_{}, usual_{};
};

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Client {
 public:
  Client(int64_t shards, int64_t experts, const int32_t* shard_of, uint64_t epoch)
      : num_shards_(shards), shard_of_(shard_of, shard_of + experts), epoch_(epoch) {}

  // Takes over the link; its descriptor is Python's to close after `drop_link`. -1: too many, and nothing is taken over.
  int add_link(Link* link) {
    size_t index = 0;
    while (index < links_.size() && links_[index].link) index++;
    if (index == MAX_LINKS) return -1;
    if (index == links_.size()) links_.emplace_back();
    links_[index].link.reset(link);
    return int(index);
  }

  void drop_link(int index) {
    copy_out(index);
    links_[index] = {};
  }

  // Return a handle, or -1 if an expert id does not exist. `part_tokens` [shards] gets the number of tokens of each part.
  int dispatch(const Name& name, const uint8_t* hidden, bool is_bf16, uint32_t width, const int32_t* ids,
               const float* weights, uint32_t tokens, uint32_t top_k, uint32_t* part_tokens) {
    for (size_t i = 0; i < size_t(tokens) * top_k; i++)
      if (ids[i] < -1 || ids[i] >= int64_t(shard_of_.size())) return -1;
    size_t handle = 0;
    while (handle < calls_.size() && calls_[handle]->used) handle++;
    if (handle == calls_.size()) calls_.push_back(std::make_unique<Call>());
    Call& call = *calls_[handle];
    call.used = true, call.tokens = tokens, call.hidden = width, call.missing = 0;
    call.parts.resize(num_shards_);
    const size_t row_bytes = size_t(width) * (is_bf16 ? 2 : 4);
    for (int64_t shard = 0; shard < num_shards_; shard++) {
      Part& part = call.parts[shard];
      split(part, int32_t(shard), ids, weights, tokens, top_k);
      part_tokens[shard] = part.used ? uint32_t(part.ids.size() / top_k) : 0;
      if (!part.used) continue;
      Name own = name;
      own.epoch = epoch_, own.call = name.call + uint64_t(shard);
      part.head = header_of(own, REQUEST, is_bf16, part_tokens[shard], top_k, width);
      frame(part, hidden, row_bytes);
      part.waits = true;
      call.missing++;
      waiting_[own.call] = {int(handle), int(shard)};
    }
    return int(handle);
  }

  // False: the link is of no use; an event follows.
  bool send(int handle, int shard, int index) {
    OpenLink& to = links_[index];
    if (!to.link) return false;
    const std::vector<iovec>& frame = calls_[handle]->parts[shard].frame;
    to.link->queue(handle, frame.data(), frame.size());
    to.owes++;
    if (!to.link->flush()) return false;
    to.link->arm();
    return true;
  }

  bool polls_for_room(int index) const { return links_[index].link && links_[index].link->polls_for_room(); }

  // How long `poll` may wait awake; 0: it sleeps at once.
  void wait_awake(std::chrono::nanoseconds budget) { patience_.set(budget); }

  // Receives what is there. With a handle: until its call is complete, something else happens, or the time is over.
  size_t poll(int handle, int64_t timeout_us) {
    events_.clear();
    if (handle < 0) {
      for (size_t index = 0; index < links_.size(); index++) {
        if (links_[index].link) links_[index].link->wake();
        serve(int(index), true);
      }
      return events_.size();
    }
    const Clock::time_point began = Clock::now(), end = began + std::chrono::microseconds(timeout_us);
    while (calls_[handle]->missing && !happened()) {
      polls_.clear(), polled_.clear();
      bool found = false;
      for (size_t index = 0; index < links_.size(); index++) {
        const OpenLink& from = links_[index];
        if (!from.link || from.owes <= 0) continue;
        if (from.link->has_more()) {
          serve(int(index), false);
          found = true;
          continue;
        }
        polls_.push_back({from.link->fd(), short(POLLIN | (from.link->polls_for_room() ? POLLOUT : 0)), 0});
        polled_.push_back(int(index));
      }
      // First the time: a shard that sends without an end must not hold the engine.
      const Clock::time_point now = Clock::now();
      const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(end - now);
      if (left.count() <= 0) break;
      if (found) continue;
      if (polls_.empty()) break;
      if (patience_.lasts(now - began)) {
        for (const int index : polled_) look(index);
        continue;
      }
      const timespec limit{left.count() / 1000000000, left.count() % 1000000000};
      if (ppoll(polls_.data(), polls_.size(), &limit, nullptr) <= 0) continue;
      for (size_t i = 0; i < polls_.size(); i++) {
        if (!polls_[i].revents || !links_[polled_[i]].link) continue;
        links_[polled_[i]].link->wake();
        serve(polled_[i], false);
      }
    }
    patience_.learn(Clock::now() - began);
    return events_.size();
  }

  const Event* events() const { return events_.data(); }
  const std::string& text() const { return text_; }

  // Takes the sums of a part that came another way. False: of another shape, or not awaited.
  bool fill(int handle, int shard, const double* sums, uint32_t tokens, uint32_t width) {
    Part& part = calls_[handle]->parts[shard];
    if (!part.waits || tokens != part.head.tokens || width != part.head.hidden) return false;
    settle(*calls_[handle], part, reinterpret_cast<const uint8_t*>(sums), F64, -1);
    return true;
  }

  const Part& part(int handle, int shard) const { return calls_[handle]->parts[shard]; }

  // Exact until the only rounding, so the sum is the same however experts are shared out and answers came in.
  // Returns as `release` does: a repeated part may still be on its way to another replica.
  size_t finish(int handle, float* out, int32_t* broken, size_t max) {
    Call& call = *calls_[handle];
    next_row_.assign(call.parts.size(), 0);
    for (uint32_t token = 0; token < call.tokens; token++) {
      total_.assign(call.hidden, 0);
      for (size_t shard = 0; shard < call.parts.size(); shard++) {
        const Part& part = call.parts[shard];
        size_t& row = next_row_[shard];
        if (!part.used || row == part.head.tokens || (!part.rows.empty() && part.rows[row] != int32_t(token))) continue;
        const uint8_t* const from = part.sums + row++ * call.hidden * bytes_of_number(part.sums_dtype);
        if (part.sums_dtype == F64)
          add(total_.data(), reinterpret_cast<const double*>(from), call.hidden);
        else
          add(total_.data(), reinterpret_cast<const int32_t*>(from), call.hidden);
      }
      round_to(out + size_t(token) * call.hidden, total_.data(), call.hidden);
    }
    return release(handle, broken, max);
  }

  // The caller's tensors may go after this. A link that has sent a part of a frame only cannot go on: `broken` gets the
  // indices of such links, at most `max`, and their number is returned.
  size_t release(int handle, int32_t* broken, size_t max) {
    Call& call = *calls_[handle];
    for (const Part& part : call.parts)
      if (part.used) waiting_.erase(part.head.name.call);
    size_t count = 0;
    for (size_t index = 0; index < links_.size(); index++) {
      OpenLink& to = links_[index];
      if (!to.link || !to.link->has_unsent()) continue;
      bool begun = false;
      to.owes -= to.link->forget(handle, begun);
      if (begun && count < max) broken[count++] = int32_t(index);
    }
    call.used = false;
    for (Part& part : call.parts) {
      if (part.held >= 0) links_[part.held].holder = nullptr;
      part.held = -1;
      if (part.kept.capacity() > KEPT_BYTES) part.kept = {};
    }
    return count;
  }

 private:
  bool happened() const {
    return std::any_of(events_.begin(), events_.end(), [](const Event& e) { return e.kind != ANSWERED; }) ||
           events_.size() >= MAX_EVENTS;
  }

  // Each token goes once to each shard that has one of its experts.
  void split(Part& part, int32_t shard, const int32_t* ids, const float* weights, uint32_t tokens, uint32_t top_k) {
    part.ids.clear(), part.weights.clear(), part.rows.clear();
    for (uint32_t token = 0; token < tokens; token++, ids += top_k, weights += top_k) {
      bool touched = false;
      for (uint32_t k = 0; k < top_k && !touched; k++) touched = ids[k] >= 0 && shard_of_[ids[k]] == shard;
      if (!touched) continue;
      for (uint32_t k = 0; k < top_k; k++)
        part.ids.push_back(ids[k] >= 0 && shard_of_[ids[k]] == shard ? ids[k] : -1);
      part.weights.insert(part.weights.end(), weights, weights + top_k);
      part.rows.push_back(int32_t(token));
    }
    part.used = !part.rows.empty();
    if (part.rows.size() == tokens) part.rows.clear();
  }

  void frame(Part& part, const uint8_t* hidden, size_t row_bytes) {
    part.frame_bytes = sizeof part.head + size_t(request_bytes(part.head));
    part.frame = {{&part.head, sizeof part.head},
                  {part.ids.data(), part.ids.size() * 4},
                  {part.weights.data(), part.weights.size() * 4}};
    uint8_t* const first = const_cast<uint8_t*>(hidden);
    if (part.rows.empty()) part.frame.push_back({first, part.head.tokens * row_bytes});
    for (const int32_t row : part.rows) {
      uint8_t* const at = first + size_t(row) * row_bytes;
      iovec& last = part.frame.back();
      if (part.frame.size() > 3 && static_cast<uint8_t*>(last.iov_base) + last.iov_len == at)
        last.iov_len += row_bytes;
      else
        part.frame.push_back({at, row_bytes});
    }
  }

  // Serves a link that may have something; one in memory is only looked at.
  void look(int index) {
    const OpenLink& from = links_[index];
    if (from.link && from.link->in_memory() && !from.link->has_more()) return relax();
    serve(index, false);
  }

  // Sends what is left and receives what is there, until something happened that Python has to see; without `all` until
  // no answer is owed.
  void serve(int index, bool all) {
    OpenLink& from = links_[index];
    if (!from.link) return;
    if (!from.link->flush()) return report(ENDED, index);
    while (!happened() && (all || from.owes > 0)) {
      copy_out(index);
      switch (from.link->next(false)) {
        case Result::READY:
          take(index, from.link->frame(), from.link->size());
          break;
        case Result::AGAIN:
          return;
        case Result::TOO_LARGE:
          return report(NONSENSE, index, "a frame announces more bytes than any may have");
        case Result::FORGED:
          return report(NONSENSE, index, "a frame does not open, or the shared memory was changed");
        default:
          return report(ENDED, index);
      }
      if (!from.link) return;
    }
    // An event ended the loop before `next` found nothing, which would have armed the link for what is still owed.
    if (from.owes > 0) from.link->arm();
  }

  void take(int index, const uint8_t* frame, size_t size) {
    Header h;
    if (size < sizeof h) return report(NONSENSE, index, text("a frame of %zu bytes is shorter than its header", size));
    std::memcpy(&h, frame, sizeof h);
    if (std::memcmp(h.magic, MAGIC, sizeof MAGIC)) return report(NONSENSE, index, "a frame does not begin with MSEX");
    if (h.version != VERSION) return report(NONSENSE, index, text("a frame has version %d", h.version));
    if (h.kind != PARTIAL && h.kind != ERROR) return report(NONSENSE, index, text("an answer has kind %d", h.kind));
    if (h.kind == PARTIAL && h.dtype != F64 && h.dtype != I32)
      return report(NONSENSE, index, text("a partial sum has dtype code %d", h.dtype));
    const unsigned __int128 sum_bytes = (unsigned __int128)h.tokens * h.hidden * (h.dtype == F64 ? 8 : 4);
    if (h.kind == PARTIAL && (!h.tokens || !h.hidden || sum_bytes != size - sizeof h))
      return report(NONSENSE, index, text("a partial sum of %u tokens, hidden size %u has %zu bytes", h.tokens, h.hidden, size));
    if (links_[index].owes > 0) links_[index].owes--;
    const auto found = waiting_.find(h.name.call);
    Part* part = found == waiting_.end() ? nullptr : &calls_[found->second.handle]->parts[found->second.shard];
    const char* const words = reinterpret_cast<const char*>(frame + sizeof h);
    const size_t num_words = std::min(size - sizeof h, MAX_MESSAGE_BYTES);
    if (!part || !part->waits || !(part->head.name == h.name)) {
      // A refusal of call 0: the shard could not even read the name, so whose frame it was is unknown.
      if (h.kind == ERROR && h.name.call == 0) return report(NONSENSE, index, std::string(words, num_words));
      return report(DROPPED, index);
    }
    const auto [handle, shard] = found->second;
    if (h.kind == ERROR) return report(REFUSED, index, std::string(words, num_words), handle, shard);
    if (h.tokens != part->head.tokens || h.hidden != part->head.hidden)
      return report(MISSHAPEN, index, text("sent [%u, %u], expected [%u, %u]", h.tokens, h.hidden, part->head.tokens,
                                           part->head.hidden), handle, shard);
    settle(*calls_[handle], *part, frame + sizeof h, h.dtype, index);
    report(ANSWERED, index, "", handle, shard);
  }

  // Sums that came over a link which owes no more stay in its memory; others are copied.
  void settle(Call& call, Part& part, const uint8_t* sums, uint8_t dtype, int index) {
    part.sums = sums, part.sums_dtype = dtype;
    const bool stays = index >= 0 && links_[index].owes == 0;
    if (stays) part.held = index, links_[index].holder = &part;
    if (!stays) keep(part);
    part.waits = false;
    call.missing--;
  }

  void keep(Part& part) {
    const size_t bytes = size_t(part.head.tokens) * part.head.hidden * bytes_of_number(part.sums_dtype);
    part.kept.assign(part.sums, part.sums + bytes);
    part.sums = part.kept.data(), part.held = -1;
  }

  // Before the link's memory is used again, or goes.
  void copy_out(int index) {
    if (Part* const holder = std::exchange(links_[index].holder, nullptr)) keep(*holder);
  }

  void report(EventKind kind, int link, std::string words = "", int handle = -1, int shard = -1) {
    events_.push_back({kind, link, handle, shard});
    if (!words.empty()) text_ = std::move(words);
    if (kind == ENDED || kind == NONSENSE) drop_link(link);
  }

  static std::string text(const char* form, auto... values) {
    char line[256];
    std::snprintf(line, sizeof line, form, values...);
    return line;
  }

  struct Place {
    int handle, shard;
  };

  const int64_t num_shards_;
  const std::vector<int32_t> shard_of_;
  const uint64_t epoch_;
  std::vector<OpenLink> links_;
  std::vector<std::unique_ptr<Call>> calls_;
  std::unordered_map<uint64_t, Place> waiting_;  // by call id
  std::vector<Event> events_;
  std::string text_;
  Patience patience_;
  std::vector<pollfd> polls_;
  std::vector<int> polled_;
  std::vector<size_t> next_row_;  // by shard
  std::vector<double> total_;     // of one token
};

}  // namespace

extern "C" {

Client* wire_client_new(int64_t shards, int64_t experts, const int32_t* shard_of, uint64_t epoch) {
  return new Client(shards, experts, shard_of, epoch);
}
void wire_client_delete(Client* client) { delete client; }
int wire_link_add(Client* client, Link* link) { return client->add_link(link); }
void wire_link_drop(Client* client, int link) { client->drop_link(link); }

// Splits a batch. The parts' calls are `call` + shard. hidden, ids and weights must stay until `finish` or `release`.
int wire_dispatch(Client* client, uint64_t call, uint64_t step, uint32_t layer, uint32_t micro_batch, const uint8_t* hidden,
                  int is_bf16, uint32_t width, const int32_t* ids, const float* weights, uint32_t tokens, uint32_t top_k,
                  uint32_t* part_tokens) {
  return client->dispatch({0, call, step, layer, micro_batch}, hidden, is_bf16, width, ids, weights, tokens, top_k,
                          part_tokens);
}
int wire_send(Client* client, int handle, int shard, int link) { return client->send(handle, shard, link); }
int wire_polls_for_room(Client* client, int link) { return client->polls_for_room(link); }
void wire_wait_awake(Client* client, int64_t budget_ns) { client->wait_awake(std::chrono::nanoseconds(budget_ns)); }
size_t wire_poll(Client* client, int handle, int64_t timeout_us, const Event** events) {
  const size_t count = client->poll(handle, timeout_us);
  *events = client->events();
  return count;
}
const char* wire_text(Client* client, size_t* size) {
  *size = client->text().size();
  return client->text().data();
}
// A part's frame, for a transport that is not a socket: its bytes, then the bytes themselves.
size_t wire_part_bytes(Client* client, int handle, int shard) { return client->part(handle, shard).frame_bytes; }
void wire_part_copy(Client* client, int handle, int shard, uint8_t* out) {
  for (const iovec& piece : client->part(handle, shard).frame) {
    std::memcpy(out, piece.iov_base, piece.iov_len);
    out += piece.iov_len;
  }
}
int wire_fill(Client* client, int handle, int shard, const double* sums, uint32_t tokens, uint32_t width) {
  return client->fill(handle, shard, sums, tokens, width);
}
size_t wire_finish(Client* client, int handle, float* out, int32_t* broken, size_t max) {
  return client->finish(handle, out, broken, max);
}
size_t wire_release(Client* client, int handle, int32_t* broken, size_t max) {
  return client->release(handle, broken, max);
}

}  // extern "C"
