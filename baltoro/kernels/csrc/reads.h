// What both ways of reading share: queues of reads, cut into pieces, and what the end of a piece means.
#pragma once
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <thread>

#include "reader.h"

namespace baltoro {

struct Piece {
  std::shared_ptr<Read> read;
  int64_t offset, nbytes;  // in the file, of what is still wanted
  uint8_t* to;
};

struct Drive {
  std::deque<std::shared_ptr<Read>> waiting;
  std::deque<Piece> again;  // pieces that came in part
  int under_way = 0;
};

class Reads : public Reader {
 public:
  Reads(int64_t piece_bytes, int depth) : piece_bytes_(piece_bytes), depth_(depth) {}

  std::shared_ptr<const OpenFile> open(const std::string& path, bool direct) override;
  std::shared_ptr<Read> submit(std::shared_ptr<const OpenFile> file, int64_t offset, int64_t nbytes,
                               uint8_t* to) override;
  ReadStatistics statistics() const override;
  void close() override;

 protected:
  virtual void added(uint64_t device) = 0;                           // a drive that was not there, under the lock
  virtual void arrived(uint64_t device, int64_t pieces) = 0;         // for this drive, under the lock
  virtual void stop() = 0;                                           // closing_ is set: end the threads, no lock held
  bool next(Drive& drive, Piece& piece);                             // false: nothing to do, or enough under way
  void ended(Drive& drive, Piece& piece, int64_t result);            // bytes, or -errno
  void spent(double cpu_s) { cpu_s_.store(cpu_s_.load() + cpu_s); }  // under the lock

  const int64_t piece_bytes_;
  const int depth_;
  mutable std::mutex lock_;
  std::map<uint64_t, Drive> drives_;  // by device number; references stay good
  bool closing_ = false;

 private:
  using Clock = std::chrono::steady_clock;
  void finish_if_done(const std::shared_ptr<Read>& read);
  void fail(Read& read, int64_t at, const std::string& why);

  std::mutex closed_;  // one thread closes, others wait for it
  std::vector<std::shared_ptr<OpenFile>> files_;
  ReadStatistics done_;
  std::atomic<double> cpu_s_{0};
  int64_t unfinished_ = 0;
  Clock::time_point busy_since_;
};

double thread_cpu_s();  // of the calling thread

// Signals go to other threads: Python's main thread is the one that knows what Ctrl-C means.
class SignalsBlocked {
 public:
  SignalsBlocked();
  ~SignalsBlocked();
  SignalsBlocked(const SignalsBlocked&) = delete;

 private:
  struct Mask;
  std::unique_ptr<Mask> before_;
};

std::unique_ptr<Reader> make_uring(int64_t piece_bytes, int depth);  // throws std::system_error
std::unique_ptr<Reader> make_threads(int64_t piece_bytes, int depth);

}  // namespace baltoro
