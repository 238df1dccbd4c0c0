// Good and spoilt answers against the attention side under the sanitizers. argv: number of batches, seed.
//
// A batch is complete only by answers that are whole, and its sum is then right; every other answer is an event.
#include <cstdio>
#include <fcntl.h>
#include <random>

#include <unistd.h>

#include "../../../services/wire/native/client.cpp"
#include "../../../services/wire/native/stream.h"

namespace {

constexpr int SHARDS = 3, EXPERTS = 12, HIDDEN = 8;

struct Peer {
  int near = -1, far = -1, link = -1;
  bool poisoned = false;  // the stream may be out of step since an earlier answer
  std::unique_ptr<StreamLink> reader;
};

void connect(Client& client, Peer& peer) {
  if (peer.link >= 0) client.drop_link(peer.link);
  if (peer.near >= 0) close(peer.near), close(peer.far);
  int both[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, both)) std::abort();
  fcntl(both[0], F_SETFL, O_NONBLOCK), fcntl(both[1], F_SETFL, O_NONBLOCK);
  peer.poisoned = false;
  peer.near = both[0], peer.far = both[1], peer.reader = std::make_unique<StreamLink>(peer.far);
  peer.link = client.add_link(new StreamLink(peer.near));
}

}  // namespace

int main(int, char** arguments) {
  std::mt19937_64 random(std::stoull(arguments[2]));
  const auto below = [&](uint64_t bound) { return random() % bound; };
  int32_t shard_of[EXPERTS];
  for (int i = 0; i < EXPERTS; i++) shard_of[i] = i % SHARDS;
  Client client(SHARDS, EXPERTS, shard_of, 77);
  Peer peers[SHARDS];
  for (Peer& peer : peers) connect(client, peer);

  const uint64_t count = std::stoull(arguments[1]);
  uint64_t complete = 0, events[8] = {};
  for (uint64_t i = 0; i < count; i++) {
    const uint32_t tokens = uint32_t(below(5)), top_k = 2;
    std::vector<float> hidden(tokens * HIDDEN, 1.0f), weights(tokens * top_k, 0.5f);
    std::vector<int32_t> ids(tokens * top_k);
    for (int32_t& id : ids) id = int32_t(below(EXPERTS + 1)) - 1;
    uint32_t part_tokens[SHARDS];
    const int handle = client.dispatch({0, 1 + i * SHARDS, i, 1, 0}, reinterpret_cast<const uint8_t*>(hidden.data()), false,
                                       HIDDEN, ids.data(), weights.data(), tokens, top_k, part_tokens);
    if (handle < 0) return 2;
    bool spoilt = false;
    for (const Peer& peer : peers) spoilt |= peer.poisoned;
    for (int s = 0; s < SHARDS; s++) {
      Peer& peer = peers[s];
      if (!part_tokens[s]) continue;
      if (!client.send(handle, s, peer.link)) return 3;
      while (peer.reader->next(false) == Result::READY) {
        Header request;
        std::memcpy(&request, peer.reader->frame(), sizeof request);
        if (peer.reader->size() != sizeof request + size_t(request_bytes(request))) return 4;
        const bool refuses = below(16) == 0;
        if (below(16) == 0) request.tokens++, spoilt = true;  // whole, but of another shape
        const Dtype form = below(2) ? F64 : I32;
        const size_t numbers = request.tokens * HIDDEN, sum_bytes = numbers * bytes_of_number(form);
        std::vector<uint8_t> answer(LENGTH_BYTES + sizeof(Header) + (refuses ? 5 : sum_bytes));
        Header reply = header_of(request.name, refuses ? ERROR : PARTIAL, form, refuses ? 0 : request.tokens, 0,
                                 refuses ? 0 : HIDDEN);
        const uint32_t length = uint32_t(answer.size() - LENGTH_BYTES);
        std::memcpy(answer.data(), &length, LENGTH_BYTES);
        std::memcpy(&answer[LENGTH_BYTES], &reply, sizeof reply);
        if (!refuses) {
          const std::vector<double> sums(numbers, double(s + 1));
          const std::vector<int32_t> steps(numbers, int32_t((s + 1) / STEP));
          const void* const from = form == F64 ? static_cast<const void*>(sums.data()) : steps.data();
          std::memcpy(&answer[LENGTH_BYTES + sizeof reply], from, sum_bytes);
        }
        spoilt |= refuses;
        if (below(3) == 0) {
          spoilt = peer.poisoned = true;
          for (uint64_t n = 1 + below(3); n; n--) {
            const uint64_t value = below(2) ? random() : ~uint64_t(0), size = uint64_t(1) << below(4);
            // The length, the header and the sums; most often the header.
            const uint64_t at = below(4) ? LENGTH_BYTES + below(sizeof reply) : below(answer.size());
            std::memcpy(&answer[at], &value, std::min<size_t>(size, answer.size() - at));
          }
          if (below(4) == 0) answer.resize(below(answer.size() + 1));
        }
        if (write(peer.far, answer.data(), answer.size()) != ssize_t(answer.size())) return 5;
        if (below(8) == 0 && write(peer.far, answer.data(), answer.size()) < 0) return 5;  // twice
      }
    }
    bool over = false;
    for (int turn = 0; turn < 40 && !over; turn++) {
      const size_t found = client.poll(turn % 2 ? handle : -1, 1);
      over = found == 0 && turn % 2 == 0;
      for (size_t e = 0; e < found; e++) {
        const Event event = client.events()[e];
        events[event.kind]++;
        if (event.kind == ENDED || event.kind == NONSENSE)
          for (Peer& peer : peers)
            if (peer.link == event.link) connect(client, peer);
      }
    }
    bool all = true;
    for (int s = 0; s < SHARDS; s++) all &= !client.part(handle, s).used || !client.part(handle, s).waits;
    if (all) {
      std::vector<float> out(tokens * HIDDEN, -1.0f);
      client.finish(handle, out.data(), nullptr, 0);
      complete++;
      for (uint32_t t = 0; t < tokens && !spoilt; t++) {
        float expected = 0;
        for (int s = 0; s < SHARDS; s++)
          if ((ids[2 * t] >= 0 && ids[2 * t] % SHARDS == s) || (ids[2 * t + 1] >= 0 && ids[2 * t + 1] % SHARDS == s))
            expected += float(s + 1);
        for (int n = 0; n < HIDDEN; n++)
          if (out[t * HIDDEN + n] != expected) return 6;
      }
    } else {
      if (!spoilt) return 7;
      client.release(handle, nullptr, 0);
      // What is still under way belongs to a call that is gone; a stream that was cut may never go on.
      for (Peer& peer : peers)
        if (peer.poisoned && below(2)) connect(client, peer);
    }
  }
  std::printf("%llu complete; answered %llu, nonsense %llu, refused %llu, dropped %llu, misshapen %llu\n",
              (unsigned long long)complete, (unsigned long long)events[ANSWERED], (unsigned long long)events[NONSENSE],
              (unsigned long long)events[REFUSED], (unsigned long long)events[DROPPED],
              (unsigned long long)events[MISSHAPEN]);
  for (const EventKind kind : {ANSWERED, NONSENSE, REFUSED, DROPPED, MISSHAPEN})
    if (!events[kind]) return 8;
  return complete > count / 10 && complete < count ? 0 : 9;
}
