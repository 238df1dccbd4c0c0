// Rings whose memory a hostile peer changes, under the sanitizers. argv: number of frames, seed.
//
// Good frames arrive whole and in order, whatever their sizes. After a hostile change a frame is refused or read within
// the mapping, whose end is a page that nobody can touch.
#include <cstdio>
#include <random>

#include "../../../services/wire/native/ring.h"

using namespace moonshard::wire;

namespace {

constexpr size_t RING = MIN_RING_BYTES;

struct Pair {
  int near = -1, far = -1;
  uint8_t* hostile = nullptr;
  std::unique_ptr<RingLink> caller, shard;

  Pair() {
    int both[2];
    const int memory = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory < 0 || ftruncate(memory, RING_PAGE + 2 * RING) || socketpair(AF_UNIX, SOCK_STREAM, 0, both)) std::abort();
    if (RingLink::open(both[0], memory, false)) std::abort();  // it is not sealed yet
    if (fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) std::abort();
    near = both[0], far = both[1];
    caller = RingLink::open(near, memory, false), shard = RingLink::open(far, memory, true);
    void* const at = mmap(nullptr, RING_PAGE + 2 * RING, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (!caller || !shard || at == MAP_FAILED) std::abort();
    hostile = static_cast<uint8_t*>(at);
    close(memory);
  }
  ~Pair() { munmap(hostile, RING_PAGE + 2 * RING), close(near), close(far); }
};

}  // namespace

int main(int, char** arguments) {
  std::mt19937_64 random(std::stoull(arguments[2]));
  const auto below = [&](uint64_t bound) { return random() % bound; };
  const uint64_t count = std::stoull(arguments[1]);
  uint64_t good = 0, results[6] = {}, touched = 0;
  auto pair = std::make_unique<Pair>();
  for (uint64_t i = 0; i < count; i++) {
    // Empty, small, around half a ring, and larger than the ring.
    const size_t sizes[] = {below(2), below(300), RING / 2 - 200 + below(400), below(4) ? below(5000) : below(5 * RING)};
    std::vector<uint8_t> frame(sizes[below(4)]);
    for (size_t at = 0; at < frame.size(); at += 61) frame[at] = uint8_t(i + at);
    const size_t cut = below(frame.size() + 1);
    const iovec pieces[] = {{frame.data(), cut}, {frame.data() + cut, frame.size() - cut}};
    // In the ring itself, where there is room for the most that the frame may be.
    uint8_t* const place = below(2) ? pair->caller->begin(frame.size() + below(9000)) : nullptr;
    if (place) {
      if (frame.size()) std::memcpy(place, frame.data(), frame.size());
      pair->caller->commit(frame.size());
    } else {
      pair->caller->queue(1, pieces, 2);
    }
    Result result = Result::AGAIN;
    const bool spoils = below(3) == 0;
    for (int turn = 0; turn < 64 && result == Result::AGAIN; turn++) {
      if (!pair->caller->flush()) {
        if (!spoils || turn == 0) return 2;
        break;  // the counter of what was read made no sense
      }
      if (spoils && turn == 0) {
        for (uint64_t n = 1 + below(4); n; n--) {
          const uint64_t value = below(3) ? random() >> below(64) : ~uint64_t(0);
          // The counters most often, the first record, or anywhere.
          const uint64_t at = below(3) ? below(4) * 64 : below(2) ? RING_PAGE + below(64) : below(RING_PAGE + 2 * RING - 8);
          std::memcpy(pair->hostile + at, &value, sizeof value);
        }
      }
      pair->shard->wake();
      result = pair->shard->next(false);
      if (result == Result::READY)
        for (size_t at = 0; at < pair->shard->size(); at++) touched += pair->shard->frame()[at];
    }
    results[int(result)]++;
    if (spoils) {
      pair->shard->has_more(), pair->caller->flush(), pair->caller->wake(), pair->caller->next(false);
      pair = std::make_unique<Pair>();
      continue;
    }
    if (result != Result::READY || pair->shard->size() != frame.size()) return 3;
    if (frame.size() && std::memcmp(pair->shard->frame(), frame.data(), frame.size())) return 4;
    good++;
  }
  std::printf("%llu good; ready %llu, again %llu, too large %llu, forged %llu (%llu)\n", (unsigned long long)good,
              (unsigned long long)results[0], (unsigned long long)results[1], (unsigned long long)results[4],
              (unsigned long long)results[5], (unsigned long long)touched);
  return good && results[1] && results[4] && results[5] ? 0 : 5;
}
