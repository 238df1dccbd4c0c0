// The expert side of the hot wire: a frame in, its answer out, without the interpreter.
//
// A frame is hostile until it is checked: lengths before anything is read, ids before anything is computed. A frame that
// makes no sense is answered by a refusal in words, and the connection goes on.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "link.h"
#include "sums.h"

using namespace moonshard::wire;

extern "C" {

using ExpertMlp = void (*)(const uint8_t* const* experts, int64_t num_experts, int64_t hidden, int64_t width,
                           const void* x, int64_t x_is_bf16, int64_t x_stride, const int32_t* ids,
                           const float* weights, int64_t tokens, int64_t top_k, double* out, int64_t threads);

// Read by Python at any time.
struct Counters {
  std::atomic<int64_t> tokens, received_bytes, sent_bytes, refused, compute_ns, frames[18];
};

// The description of a shard. Python owns it and keeps everything in it alive.
struct Shard {
  int64_t hidden, width, num_experts, num_local, num_layers, threads, num_buckets;
  const int32_t* local_index;           // [num_experts] place of an expert here, -1: elsewhere
  const uint8_t* const* const* packed;  // [num_layers] addresses of the packed experts; null: no experts
  int64_t* const* token_counts;         // [num_layers] of [num_local]; null: no experts
  const int64_t* bucket_ns;             // [num_buckets] upper bounds of Counters.frames by time of computation
  ExpertMlp mlp;
  const char* layers_text;   // "60 of 1 to 60"
  const char* experts_text;  // "192 of 0 to 191"
  Counters* counters;
};
}

namespace {

std::string text(const char* form, auto... values) {
  char line[MAX_MESSAGE_BYTES];
  const int length = std::snprintf(line, sizeof line, form, values...);
  return std::string(line, std::min<size_t>(size_t(std::max(length, 0)), sizeof line - 1));
}

// As Python writes bytes: b'MS\x00X'.
std::string quoted(const char* bytes, size_t count) {
  std::string out = "b'";
  for (size_t i = 0; i < count; i++) {
    const uint8_t byte = uint8_t(bytes[i]);
    out += byte >= 0x20 && byte < 0x7F && byte != '\'' && byte != '\\' ? std::string(1, char(byte)) : text("\\x%02x", byte);
  }
  return out + "'";
}

std::string decimal(unsigned __int128 value) {
  std::string digits;
  do digits.insert(digits.begin(), char('0' + int(value % 10)));
  while (value /= 10);
  return digits;
}

// One connection's way of answering: the memory that it needs again and again.
class Session {
 public:
  Session(const Shard& shard, std::mutex& turn) : shard_(shard), turn_(turn) {}

  // False only if the shard is computing and `wait` is false, or memory is short. Then there is no answer.
  // A sum may be written into the memory of the link `to`, if it has any.
  bool answer(const uint8_t* frame, size_t size, bool wait, Link* to = nullptr) {
    to_ = to, place_ = nullptr;
    Header header{};
    std::string complaint = read_header(frame, size, header);
    const bool readable = complaint.empty();
    if (readable) complaint = check(header, frame, size);
    if (complaint.empty()) {
      std::unique_lock<std::mutex> only(turn_, std::defer_lock);
      // The kernels use every thread that the process was given, so a second computation would only be in the way.
      if (wait)
        only.lock();
      else if (!only.try_lock())
        return false;
      if (!compute(header, frame)) return false;
      shard_.counters->tokens += header.tokens;
    } else {
      refuse(readable ? header.name : Name{}, complaint);
    }
    shard_.counters->received_bytes += int64_t(size);
    shard_.counters->sent_bytes += int64_t(out_bytes_);
    return true;
  }

  const uint8_t* out() const { return out_.frame(); }
  size_t out_bytes() const { return out_bytes_; }

  // False: the connection broke.
  bool send(Link& link) {
    if (place_) {
      link.commit(out_bytes_);
      return true;
    }
    const iovec answer{out_.frame(), out_bytes_};
    return link.send(&answer, 1);
  }

  void let_go() {
    if (out_.room() > KEPT_BYTES) out_.release();
    if (sums_.room() > KEPT_BYTES) sums_.release();
    if (local_.capacity() * sizeof(int32_t) > KEPT_BYTES) local_ = {};
  }

 private:
  static std::string read_header(const uint8_t* frame, size_t size, Header& header) {
    if (size < sizeof header)
      return text("a frame of %zu bytes is shorter than its header of %zu", size, sizeof header);
    std::memcpy(&header, frame, sizeof header);
    if (std::memcmp(header.magic, MAGIC, sizeof MAGIC))
      return "a frame begins with " + quoted(header.magic, sizeof MAGIC) + ", expected " + quoted(MAGIC, sizeof MAGIC);
    if (header.version != VERSION) return text("a frame has version %d, expected %d", header.version, VERSION);
    if (header.kind < REQUEST || header.kind > ERROR) return text("a frame has kind %d, expected 1 to 3", header.kind);
    if (header.dtype > I32) return text("a frame has dtype code %d, expected 0 to 3", header.dtype);
    return "";
  }

  // Checks everything that `compute` relies on, and makes the ids local.
  std::string check(const Header& h, const uint8_t* frame, size_t size) {
    if (h.kind != REQUEST)
      return text("expected a request, found a frame of kind %s", h.kind == PARTIAL ? "PARTIAL" : "ERROR");
    if (h.dtype > BF16)
      return text("a request has hidden states of torch.%s, expected float32 or bfloat16", h.dtype == F64 ? "float64" : "int32");
    if (!h.tokens || !h.top_k || !h.hidden)
      return text("a request has %u tokens, top_k %u, hidden size %u; none may be 0", h.tokens, h.top_k, h.hidden);
    if (uint64_t(h.tokens) * h.hidden > MAX_SUMS)
      return text("the sums of %u tokens, hidden size %u would be larger than any frame", h.tokens, h.hidden);
    if (const unsigned __int128 expected = sizeof h + request_bytes(h); expected != size)
      return text("a frame of %u tokens, top_k %u, hidden size %u has %zu bytes, expected ", h.tokens, h.top_k, h.hidden,
                  size) + decimal(expected);
    if (h.name.layer >= shard_.num_layers || !shard_.packed[h.name.layer])
      return text("layer %u has no routed experts, expected one of %s", h.name.layer, shard_.layers_text);
    if (h.hidden != shard_.hidden)
      return text("a token has %u numbers, expected hidden size %lld", h.hidden, (long long)shard_.hidden);
    const size_t pairs = size_t(h.tokens) * h.top_k;
    local_.resize(pairs);
    for (size_t i = 0; i < pairs; i++) {
      int32_t id;
      std::memcpy(&id, frame + sizeof h + 4 * i, sizeof id);
      if (id < -1 || id >= shard_.num_experts)
        return text("expert %d does not exist, expected -1 to %lld", id, (long long)shard_.num_experts - 1);
      local_[i] = id < 0 ? -1 : shard_.local_index[id];
      if (id >= 0 && local_[i] < 0)
        return text("expert %d is not on this shard, which holds %s", id, shard_.experts_text);
    }
    return "";
  }

  bool compute(const Header& h, const uint8_t* frame) {
    const size_t pairs = local_.size(), numbers = size_t(h.tokens) * h.hidden;
    const size_t room = sizeof h + numbers * sizeof(double);
    if (to_) place_ = to_->begin(room);
    if (!place_ && !out_.grow(LENGTH_BYTES + room)) return false;
    uint8_t* const out = place_ ? place_ : out_.frame();
    // A bf16 run's sums are made elsewhere, and become steps on their way into the frame.
    if (h.dtype == BF16 && !sums_.grow(LENGTH_BYTES + numbers * sizeof(double))) return false;
    double* const framed = reinterpret_cast<double*>(out + sizeof h);
    double* const sums = h.dtype == BF16 ? reinterpret_cast<double*>(sums_.frame()) : framed;
    int64_t* const counts = shard_.token_counts[h.name.layer];
    for (const int32_t local : local_)
      if (local >= 0) counts[local]++;
    const auto began = std::chrono::steady_clock::now();
    shard_.mlp(shard_.packed[h.name.layer], shard_.num_local, shard_.hidden, shard_.width, frame + sizeof h + 8 * pairs,
               h.dtype, shard_.hidden, local_.data(), reinterpret_cast<const float*>(frame + sizeof h + 4 * pairs),
               h.tokens, h.top_k, sums, shard_.threads);
    const int64_t ns =
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - began).count();
    int64_t bucket = 0;
    while (bucket < shard_.num_buckets && ns > shard_.bucket_ns[bucket]) bucket++;
    shard_.counters->frames[bucket]++;
    shard_.counters->compute_ns += ns;
    const bool in_steps = h.dtype == BF16 && to_steps(sums, numbers, reinterpret_cast<int32_t*>(framed));
    if (!in_steps && sums != framed) std::memcpy(framed, sums, numbers * sizeof(double));
    const Header reply = header_of(h.name, PARTIAL, in_steps ? I32 : F64, h.tokens, 0, h.hidden);
    std::memcpy(out, &reply, sizeof reply);
    out_bytes_ = sizeof reply + numbers * bytes_of_number(reply.dtype);
    return true;
  }

  void refuse(const Name& name, const std::string& complaint) {
    shard_.counters->refused++;
    const Header reply = header_of(name, ERROR, 0, 0, 0, 0);
    const size_t size = std::min(complaint.size(), MAX_MESSAGE_BYTES);
    if (!out_.grow(LENGTH_BYTES + sizeof reply + MAX_MESSAGE_BYTES)) std::abort();
    std::memcpy(out_.frame(), &reply, sizeof reply);
    std::memcpy(out_.frame() + sizeof reply, complaint.data(), size);
    out_bytes_ = sizeof reply + size;
  }

  const Shard& shard_;
  std::mutex& turn_;
  std::vector<int32_t> local_;
  Buffer out_, sums_;
  size_t out_bytes_ = 0;
  Link* to_ = nullptr;
  uint8_t* place_ = nullptr;  // of the answer in the link's memory
};

}  // namespace

extern "C" {

std::mutex* wire_turn_new() { return new std::mutex; }
void wire_turn_delete(std::mutex* turn) { delete turn; }

Session* wire_session_new(const Shard* shard, std::mutex* turn) { return new Session(*shard, *turn); }
void wire_session_delete(Session* session) { delete session; }

// Answers one frame. Returns the answer's bytes and where they are until the next call, or 0: the shard is computing.
size_t wire_session_answer(Session* session, const uint8_t* frame, size_t size, int wait, const uint8_t** out) {
  if (!session->answer(frame, size, wait)) return 0;
  *out = session->out();
  return session->out_bytes();
}

// Answers every frame of a link in order, until its end. Returns a Result.
int wire_serve(const Shard* shard, std::mutex* turn, Link* link) {
  Session session(*shard, *turn);
  for (;;) {
    const Result result = link->next(true);
    if (result != Result::READY) return int(result);
    if (!session.answer(link->frame(), link->size(), true, link)) return int(Result::GONE);
    if (!session.send(*link)) return int(Result::GONE);
    session.let_go();
  }
}

}  // extern "C"
