// Reading by one io_uring and the thread that owns it, by the system calls themselves. The thread sleeps in the kernel
// until a piece has ended or a submission rings the bell, an eventfd that the ring itself reads.
#include <cerrno>
#include <system_error>

#include "reads.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

#ifdef IORING_FEAT_RW_CUR_POS  // the header, and a kernel that says so, know IORING_OP_READ: Linux 5.6

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace baltoro {

namespace {

constexpr unsigned kEntries = 256;  // pieces under way on all drives, and the bell

int setup(io_uring_params* parameters) { return static_cast<int>(syscall(__NR_io_uring_setup, kEntries, parameters)); }

struct Mapping {
  void* address = MAP_FAILED;
  size_t nbytes = 0;
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  ~Mapping() {
    if (address != MAP_FAILED) munmap(address, nbytes);
  }
  bool map(int ring, size_t size, off_t what) {
    nbytes = size;
    address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, what);
    return address != MAP_FAILED;
  }
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(address) + offset);
  }
};

// The two queues that are shared with the kernel. Used by one thread.
class Ring {
 public:
  Ring() {
    io_uring_params parameters{};
#ifdef IORING_SETUP_DEFER_TASKRUN  // no interrupt of a running thread for every piece: Linux 6.1
    parameters.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    ring_ = setup(&parameters);
    disabled_ = ring_ >= 0;
#endif
    if (ring_ < 0) {
      parameters = {};
      ring_ = setup(&parameters);
    }
    if (ring_ < 0) throw std::system_error(errno, std::generic_category(), "io_uring");
    const unsigned wanted = IORING_FEAT_RW_CUR_POS | IORING_FEAT_NODROP;
    const io_sqring_offsets& sq = parameters.sq_off;
    const io_cqring_offsets& cq = parameters.cq_off;
    if ((parameters.features & wanted) != wanted ||
        !sq_.map(ring_, sq.array + parameters.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING) ||
        !cq_.map(ring_, cq.cqes + parameters.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING) ||
        !sqes_.map(ring_, parameters.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES)) {
      ::close(ring_);
      throw std::system_error(ENOSYS, std::generic_category(), "io_uring");
    }
    sq_head_ = sq_.at<unsigned>(sq.head), sq_tail_ = sq_.at<unsigned>(sq.tail);
    sq_mask_ = *sq_.at<unsigned>(sq.ring_mask), sq_array_ = sq_.at<unsigned>(sq.array);
    cq_head_ = cq_.at<unsigned>(cq.head), cq_tail_ = cq_.at<unsigned>(cq.tail);
    cq_mask_ = *cq_.at<unsigned>(cq.ring_mask), cqes_ = cq_.at<io_uring_cqe>(cq.cqes);
  }
  ~Ring() { ::close(ring_); }
  Ring(const Ring&) = delete;

  // By the thread that will use it: the kernel takes submissions from no other.
  void enable() {
#ifdef IORING_SETUP_DEFER_TASKRUN
    if (disabled_ && syscall(__NR_io_uring_register, ring_, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) != 0) broken();
#endif
  }

  void read(int descriptor, void* to, int64_t nbytes, int64_t offset, uint64_t name) {
    const unsigned tail = *sq_tail_, index = tail & sq_mask_;
    io_uring_sqe* entry = sqes_.at<io_uring_sqe>(index * sizeof(io_uring_sqe));
    std::memset(entry, 0, sizeof *entry);
    entry->opcode = IORING_OP_READ;
    entry->fd = descriptor;
    entry->addr = reinterpret_cast<uint64_t>(to);
    entry->len = static_cast<uint32_t>(nbytes);
    entry->off = static_cast<uint64_t>(offset);
    entry->user_data = name;
    sq_array_[index] = index;
    __atomic_store_n(sq_tail_, tail + 1, __ATOMIC_RELEASE);
  }

  // Hands over what was prepared, and sleeps until something has ended.
  void enter() {
    const unsigned prepared = *sq_tail_ - __atomic_load_n(sq_head_, __ATOMIC_ACQUIRE);
    if (syscall(__NR_io_uring_enter, ring_, prepared, 1, IORING_ENTER_GETEVENTS, nullptr, 0) >= 0) return;
    if (errno != EINTR && errno != EAGAIN && errno != EBUSY) broken();
  }

  bool take(uint64_t& name, int64_t& result) {
    const unsigned head = *cq_head_;
    if (head == __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE)) return false;
    name = cqes_[head & cq_mask_].user_data;
    result = cqes_[head & cq_mask_].res;
    __atomic_store_n(cq_head_, head + 1, __ATOMIC_RELEASE);
    return true;
  }

 private:
  // Memory that the kernel may still write to can be neither kept nor given back: nothing is left but to stop.
  [[noreturn]] static void broken() {
    std::perror("baltoro: io_uring");
    std::abort();
  }

  int ring_ = -1;
  [[maybe_unused]] bool disabled_ = false;
  Mapping sq_, cq_, sqes_;
  unsigned *sq_head_, *sq_tail_, *sq_array_, *cq_head_, *cq_tail_;
  unsigned sq_mask_, cq_mask_;
  io_uring_cqe* cqes_;
};

class UringReader final : public Reads {
 public:
  UringReader(int64_t piece_bytes, int depth) : Reads(piece_bytes, depth), bell_(eventfd(0, EFD_CLOEXEC)) {
    if (bell_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    for (uint64_t slot = 0; slot < kBell; ++slot) free_.push_back(slot);
    const SignalsBlocked blocked;
    thread_ = std::thread(&UringReader::work, this);
  }
  ~UringReader() override {
    close();
    ::close(bell_);
  }
  const char* backend() const override { return "uring"; }

 protected:
  void added(uint64_t) override {}
  void arrived(uint64_t, int64_t) override {
    if (asleep_) ring_the_bell();
  }
  void stop() override {
    {
      const std::lock_guard<std::mutex> lock(lock_);
      ring_the_bell();
    }
    thread_.join();
  }

 private:
  static constexpr uint64_t kBell = kEntries - 1;

  void ring_the_bell() {
    asleep_ = false;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(bell_, &one, sizeof one);
  }

  void work() {
    ring_.enable();
    ring_.read(bell_, &rung_, sizeof rung_, 0, kBell);
    double before = thread_cpu_s();
    std::unique_lock<std::mutex> lock(lock_);
    for (;;) {
      prepare();
      if (closing_ && free_.size() == kBell) return;
      asleep_ = true;
      const double now = thread_cpu_s();
      spent(now - before);
      before = now;
      lock.unlock();
      ring_.enter();
      lock.lock();
      asleep_ = false;
      uint64_t name;
      int64_t result;
      while (ring_.take(name, result)) {
        if (name == kBell) {
          ring_.read(bell_, &rung_, sizeof rung_, 0, kBell);
          continue;
        }
        Slot& slot = slots_[name];
        ended(*slot.drive, slot.piece, result);
        slot.piece.read.reset();
        free_.push_back(name);
      }
    }
  }

  // One piece of each drive in turn, until none has more to do or all slots are taken.
  void prepare() {
    for (bool some = true; some;) {
      some = false;
      for (auto& [device, drive] : drives_) {
        if (free_.empty()) return;
        Slot& slot = slots_[free_.back()];
        if (!next(drive, slot.piece)) continue;
        slot.drive = &drive;
        const Piece& piece = slot.piece;
        ring_.read(piece.read->file->descriptor, piece.to, piece.nbytes, piece.offset, free_.back());
        free_.pop_back();
        some = true;
      }
    }
  }

  struct Slot {
    Piece piece;
    Drive* drive = nullptr;
  };

  uint64_t rung_ = 0;  // what the bell's read brings, before the ring that may write to it
  Ring ring_;
  const int bell_;
  bool asleep_ = false;
  std::vector<Slot> slots_{kBell};
  std::vector<uint64_t> free_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Reader> make_uring(int64_t piece_bytes, int depth) {
  return std::make_unique<UringReader>(piece_bytes, depth);
}

}  // namespace baltoro

#else

namespace baltoro {
std::unique_ptr<Reader> make_uring(int64_t, int) {
  throw std::system_error(ENOSYS, std::generic_category(), "io_uring");
}
}  // namespace baltoro

#endif
