// Reading by threads that each wait in pread: everywhere that io_uring is not.
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "reads.h"

namespace baltoro {

namespace {

class ThreadReader final : public Reads {
 public:
  using Reads::Reads;
  ~ThreadReader() override { close(); }
  const char* backend() const override { return "threads"; }

 protected:
  // A drive's own, as many as it has pieces under way.
  void added(uint64_t device) override {
    const SignalsBlocked blocked;
    std::condition_variable& wake = wake_[device];
    Drive& drive = drives_.at(device);
    for (int i = 0; i < depth_; ++i) threads_.emplace_back([this, &drive, &wake] { work(drive, wake); });
  }

  // A thread that is awake looks for more by itself; to wake all for one piece doubles what small reads cost.
  void arrived(uint64_t device, int64_t pieces) override {
    std::condition_variable& wake = wake_.at(device);
    for (int64_t i = 0; i < std::min<int64_t>(pieces, depth_); ++i) wake.notify_one();
  }

  void stop() override {
    for (auto& [device, wake] : wake_) wake.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work(Drive& drive, std::condition_variable& wake) {
    std::unique_lock<std::mutex> lock(lock_);
    double before = thread_cpu_s();
    Piece piece;
    for (;;) {
      if (!next(drive, piece)) {
        if (closing_) return;
        wake.wait(lock);
        continue;
      }
      lock.unlock();
      const ssize_t count =
          pread(piece.read->file->descriptor, piece.to, static_cast<size_t>(piece.nbytes), piece.offset);
      const int64_t result = count < 0 ? -errno : count;
      lock.lock();
      ended(drive, piece, result);
      piece.read.reset();
      const double now = thread_cpu_s();
      spent(now - before);
      before = now;
    }
  }

  std::map<uint64_t, std::condition_variable> wake_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Reader> make_threads(int64_t piece_bytes, int depth) {
  return std::make_unique<ThreadReader>(piece_bytes, depth);
}

}  // namespace baltoro
