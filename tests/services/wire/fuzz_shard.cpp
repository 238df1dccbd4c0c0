// A million frames, each good or spoilt, through the expert side under the sanitizers. argv: number of frames, seed.
//
// The kernel here reads every number that it is given and writes every sum, so a length or an id that was not checked
// leaves the memory that the sanitizer watches.
#include <cstdio>
#include <memory>
#include <random>

#include "../../../services/wire/native/shard.cpp"

namespace {

constexpr int64_t HIDDEN = 32, EXPERTS = 16, HERE = 8, LAYERS = 4;

void mlp(const uint8_t* const* experts, int64_t num_experts, int64_t hidden, int64_t, const void* x, int64_t is_bf16,
         int64_t stride, const int32_t* ids, const float* weights, int64_t tokens, int64_t top_k, double* out, int64_t) {
  for (int64_t t = 0; t < tokens; t++) {
    float sum = 0;
    for (int64_t k = 0; k < top_k; k++) {
      const int32_t id = ids[t * top_k + k];
      if (id >= num_experts || id < -1) std::abort();
      if (id >= 0) sum += weights[t * top_k + k] * float(*experts[id]);
    }
    for (int64_t i = 0; i < hidden; i++) {
      const float value = is_bf16 ? float(static_cast<const uint16_t*>(x)[t * stride + i])
                                  : static_cast<const float*>(x)[t * stride + i];
      out[t * hidden + i] = sum + value;
    }
  }
}

}  // namespace

int main(int, char** arguments) {
  std::mt19937_64 random(std::stoull(arguments[2]));
  const auto below = [&](uint64_t bound) { return random() % bound; };

  int32_t local_index[EXPERTS];
  for (int i = 0; i < EXPERTS; i++) local_index[i] = i < HERE ? i : -1;
  const uint8_t expert[HERE] = {1, 2, 3, 4, 5, 6, 7, 8};
  const uint8_t* addresses[HERE];
  for (int i = 0; i < HERE; i++) addresses[i] = &expert[i];
  const uint8_t* const* packed[LAYERS] = {nullptr, addresses, addresses, addresses};
  int64_t counts[LAYERS][HERE] = {};
  int64_t* token_counts[LAYERS] = {nullptr, counts[1], counts[2], counts[3]};
  const int64_t buckets[] = {1000, 100000};
  Counters counters{};
  const Shard shard{HIDDEN, 32, EXPERTS, HERE, LAYERS, 1, 2, local_index, packed, token_counts, buckets, mlp,
                    "3 of 1 to 3", "8 of 0 to 7", &counters};
  std::mutex turn;
  Session session(shard, turn);

  const uint64_t count = std::stoull(arguments[1]);
  uint64_t sums = 0;
  for (uint64_t i = 0; i < count; i++) {
    const uint32_t tokens = uint32_t(1 + below(4)), top_k = uint32_t(1 + below(4));
    const uint8_t dtype = uint8_t(below(2));
    Header header = header_of({below(9), below(9), below(9), uint32_t(below(LAYERS)), 0}, REQUEST, dtype, tokens, top_k,
                              HIDDEN);
    const size_t body = size_t(request_bytes(header));
    std::vector<uint8_t> frame(sizeof header + body);
    std::memcpy(frame.data(), &header, sizeof header);
    for (size_t at = sizeof header; at < sizeof header + 4 * tokens * top_k; at += 4) {
      const int32_t id = int32_t(below(HERE + 2)) - 1;  // -1, here, and now and then elsewhere
      std::memcpy(&frame[at], &id, sizeof id);
    }
    for (uint64_t spoilt = below(4); spoilt; spoilt--) {
      const uint64_t value = below(3) ? random() : (below(2) ? ~uint64_t(0) : 0), size = uint64_t(1) << below(4);
      const uint64_t at = below(frame.size() < 128 || below(4) == 0 ? frame.size() : 128);
      std::memcpy(&frame[at], &value, std::min(size, frame.size() - at));
    }
    if (below(8) == 0) frame.resize(below(frame.size() + 1));
    if (below(16) == 0) frame.resize(frame.size() + below(64));
    // Exactly as large as the frame, so that one byte beyond it is found.
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[frame.size()]);
    std::memcpy(exact.get(), frame.data(), frame.size());
    if (!session.answer(exact.get(), frame.size(), true)) return 2;
    Header answer;
    std::memcpy(&answer, session.out(), sizeof answer);
    if (answer.kind != PARTIAL && answer.kind != ERROR) return 3;
    if (answer.kind == PARTIAL && session.out_bytes() != sizeof answer + size_t(answer.tokens) * HIDDEN * (answer.dtype == F64 ? 8 : 4)) return 4;
    if (answer.kind == ERROR && (session.out_bytes() == sizeof answer || session.out_bytes() > sizeof answer + 2048)) return 5;
    sums += answer.kind == PARTIAL;
  }
  std::printf("%llu sums, %lld refusals\n", (unsigned long long)sums, (long long)counters.refused.load());
  return sums > count / 20 && uint64_t(counters.refused) > count / 20 && sums + counters.refused == count ? 0 : 6;
}
