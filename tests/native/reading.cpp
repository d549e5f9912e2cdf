// Every way of reading against the bytes that were written, into heap blocks that are as large as the contract says,
// with readers closed and reads dropped at any moment. Part of `make check-native`; SANITIZE=thread is worth its time.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../baltoro/kernels/csrc/reader.h"

using namespace baltoro;

namespace {

std::mt19937 rng(2);
int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(rng() % (high - low + 1)); }

struct Pages {
  uint8_t* data;
  explicit Pages(int64_t count) : data(static_cast<uint8_t*>(std::aligned_alloc(kReadUnit, count * kReadUnit))) {}
  ~Pages() { std::free(data); }
  Pages(const Pages&) = delete;
};

struct Reading {
  std::unique_ptr<Pages> pages;
  std::shared_ptr<Read> read;
};

bool right(const Reading& one, const std::vector<uint8_t>& truth) {
  const Read& read = *one.read;
  const int64_t end = static_cast<int64_t>(truth.size());
  if (read.offset + read.nbytes > end) return read.error().find("ends at byte") != std::string::npos;
  return read.error().empty() && std::memcmp(read.to, truth.data() + read.offset, read.nbytes) == 0;
}

}  // namespace

int check_reading(int rounds) {
  char path[] = "baltoro-check-XXXXXX";
  const int descriptor = mkstemp(path);
  std::vector<uint8_t> truth(200 * kReadUnit + 777);
  for (uint8_t& byte : truth) byte = static_cast<uint8_t>(rng());
  int failures = write(descriptor, truth.data(), truth.size()) != static_cast<ssize_t>(truth.size());
  ::close(descriptor);
  for (const std::string& backend : reader_backends()) {
    for (int round = 0; round < 10 * rounds; ++round) {
      const auto reader = make_reader(backend, between(1, 9) * kReadUnit, static_cast<int>(between(1, 6)));
      const auto file = reader->open(path, round % 2 == 0);
      std::vector<Reading> readings;
      for (int64_t count = between(1, 12); count > 0; --count) {
        const int64_t units = between(1, 60);
        const int64_t nbytes = units * kReadUnit - (between(0, 1) != 0 ? between(0, kReadUnit - 1) : 0);
        auto pages = std::make_unique<Pages>(units);
        const auto read = reader->submit(file, between(0, 210) * kReadUnit, nbytes, pages->data);
        readings.push_back({std::move(pages), read});
      }
      const bool early = round % 3 == 0;
      if (early) reader->close();
      for (const Reading& one : readings) {
        if (!one.read->wait_for(60)) ++failures;
        const bool cut_short = early && one.read->error().find("was closed") != std::string::npos;
        if (!cut_short && !right(one, truth)) {
          std::printf("reader, %s: %s\n", backend.c_str(), one.read->error().c_str());
          ++failures;
        }
      }
    }
    std::printf("reader, %s: %d rounds\n", backend.c_str(), 10 * rounds);
  }
  unlink(path);
  return failures;
}
