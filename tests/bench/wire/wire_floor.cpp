// The least that a round trip can cost here: two processes, blocking, no protocol, nothing computed.
//   wire_floor unix|tcp|shared BYTES_THERE BYTES_BACK COUNT  ->  "p50 p99 cpu" in us; cpu of both processes together
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

void check(bool good, const char* what) {
  if (!good) std::perror(what), std::exit(1);
}

void tcp_pair(int both[2]) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  sockaddr_in place{};
  place.sin_family = AF_INET, place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof place;
  check(!bind(listener, reinterpret_cast<sockaddr*>(&place), sizeof place) && !listen(listener, 1), "listen");
  getsockname(listener, reinterpret_cast<sockaddr*>(&place), &length);
  both[0] = socket(AF_INET, SOCK_STREAM, 0);
  check(!connect(both[0], reinterpret_cast<sockaddr*>(&place), sizeof place), "connect");
  both[1] = accept(listener, nullptr, nullptr);
  for (int i = 0; i < 2; i++) setsockopt(both[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

void move(int fd, bool in, char* at, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t some = in ? recv(fd, at + done, bytes - done, 0) : send(fd, at + done, bytes - done, MSG_NOSIGNAL);
    check(some > 0, "move");
    done += size_t(some);
  }
}

double cpu_us(int who) {
  rusage used;
  getrusage(who, &used);
  return double(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 + double(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

}  // namespace

int main(int, char** arguments) {
  const std::string kind = arguments[1];
  const size_t there = std::stoul(arguments[2]), back = std::stoul(arguments[3]), count = std::stoul(arguments[4]);
  const size_t most = std::max(there, back);
  std::vector<char> mine(most), theirs(most);
  int both[2];
  const int room = 1 << 20;
  if (kind == "tcp")
    tcp_pair(both);
  else
    check(!socketpair(AF_UNIX, SOCK_STREAM, 0, both), "socketpair");
  for (int i = 0; i < 2; i++) setsockopt(both[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  char* const memory =
      static_cast<char*>(mmap(nullptr, 2 * most, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  const bool shared = kind == "shared";
  char bell = 0;
  // Through memory: a copy in, a byte that wakes, a copy out.
  const auto send_all = [&](int fd, char* at, size_t bytes, char* place) {
    if (shared) std::memcpy(place, at, bytes);
    move(fd, false, shared ? &bell : at, shared ? 1 : bytes);
  };
  const auto receive_all = [&](int fd, char* at, size_t bytes, char* place) {
    move(fd, true, shared ? &bell : at, shared ? 1 : bytes);
    if (shared) std::memcpy(at, place, bytes);
  };
  if (!fork()) {
    for (size_t i = 0; i < count; i++) {
      receive_all(both[1], theirs.data(), there, memory);
      send_all(both[1], theirs.data(), back, memory + most);
    }
    _exit(0);
  }
  std::vector<double> us;
  const double before = cpu_us(RUSAGE_SELF);
  for (size_t i = 0; i < count; i++) {
    const auto began = std::chrono::steady_clock::now();
    send_all(both[0], mine.data(), there, memory);
    receive_all(both[0], mine.data(), back, memory + most);
    us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count());
  }
  const double own = cpu_us(RUSAGE_SELF) - before;
  wait(nullptr);
  us.erase(us.begin(), us.begin() + long(count / 10));
  std::sort(us.begin(), us.end());
  std::printf("%.1f %.1f %.1f\n", us[us.size() / 2], us[us.size() * 99 / 100], (own + cpu_us(RUSAGE_CHILDREN)) / double(count));
}
