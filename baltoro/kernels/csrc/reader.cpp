// The queues, the pieces and their ends. How a piece is read: reader_uring.cpp and reader_threads.cpp.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <system_error>

#include "reads.h"

namespace baltoro {

namespace {

int64_t changed_ns(const struct stat& status) {
#ifdef __APPLE__
  const timespec& time = status.st_mtimespec;
#else
  const timespec& time = status.st_mtim;
#endif
  return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

std::string message(int error) { return std::generic_category().message(error); }

[[noreturn]] void refuse(int error, const std::string& path) {
  throw std::system_error(error, std::generic_category(), path);
}

// Some filesystems take the flag and refuse the first read.
bool reads_directly(int descriptor) {
  void* page = nullptr;
  if (posix_memalign(&page, kReadUnit, kReadUnit) != 0) return false;
  const bool good = pread(descriptor, page, kReadUnit, 0) >= 0 || errno != EINVAL;
  std::free(page);
  return good;
}

int open_directly(const std::string& path) {
#if defined(O_DIRECT)
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (descriptor < 0 || reads_directly(descriptor)) return descriptor;
  ::close(descriptor);
  errno = EINVAL;
  return -1;
#elif defined(F_NOCACHE)
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0 || (fcntl(descriptor, F_NOCACHE, 1) == 0 && reads_directly(descriptor))) return descriptor;
  ::close(descriptor);
  errno = EINVAL;
  return -1;
#else
  errno = EINVAL;
  return -1;
#endif
}

}  // namespace

std::string OpenFile::difference() const {
  struct stat now;
  if (stat(path.c_str(), &now) != 0) return message(errno);
  if (now.st_dev != device || now.st_ino != inode) return "another file has its name now";
  if (now.st_size != nbytes)
    return "it has " + std::to_string(now.st_size) + " bytes now and had " + std::to_string(nbytes);
  if (baltoro::changed_ns(now) != changed_ns) return "it was written to";
  return "";
}

bool Read::finished() const {
  const std::lock_guard<std::mutex> lock(lock_);
  return finished_;
}

bool Read::wait_for(double seconds) const {
  std::unique_lock<std::mutex> lock(lock_);
  return end_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return finished_; });
}

std::string Read::error() const {
  const std::lock_guard<std::mutex> lock(lock_);
  return finished_ ? wrong : "";
}

void Read::finish() {
  const std::lock_guard<std::mutex> lock(lock_);
  finished_ = true;
  end_.notify_all();
}

std::shared_ptr<const OpenFile> Reads::open(const std::string& path, bool direct) {
  int descriptor = -1;
  if (direct) {
    descriptor = open_directly(path);
    if (descriptor < 0 && errno != EINVAL && errno != EOPNOTSUPP) refuse(errno, path);
  }
  const bool past = descriptor >= 0;
  if (!past) descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) refuse(errno, path);
  struct stat status;
  int error = fstat(descriptor, &status) == 0 ? 0 : errno;
  if (error == 0 && !S_ISREG(status.st_mode)) error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
  if (error != 0) {
    ::close(descriptor);
    refuse(error, path);
  }
#ifdef POSIX_FADV_RANDOM
  if (!past) posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM);  // nothing ahead of what is asked for
#endif
  const auto device = static_cast<uint64_t>(status.st_dev);
  auto file = std::make_shared<OpenFile>(path, descriptor, past, device, static_cast<uint64_t>(status.st_ino),
                                         static_cast<int64_t>(status.st_size), changed_ns(status));
  const std::lock_guard<std::mutex> lock(lock_);
  if (closing_) {
    ::close(descriptor);
    throw std::logic_error("the reader is closed");
  }
  files_.push_back(file);
  if (drives_.try_emplace(device).second) added(device);
  return file;
}

std::shared_ptr<Read> Reads::submit(std::shared_ptr<const OpenFile> file, int64_t offset, int64_t nbytes, uint8_t* to) {
  auto read = std::make_shared<Read>(std::move(file), offset, nbytes, to);
  const std::lock_guard<std::mutex> lock(lock_);
  if (closing_) throw std::logic_error("the reader is closed");
  const uint64_t device = read->file->device;
  if (unfinished_++ == 0) busy_since_ = Clock::now();
  if (nbytes > 0) {
    drives_.at(device).waiting.push_back(read);
    arrived(device, (read->asked() + piece_bytes_ - 1) / piece_bytes_);
  } else {
    finish_if_done(read);
  }
  return read;
}

ReadStatistics Reads::statistics() const {
  const std::lock_guard<std::mutex> lock(lock_);
  ReadStatistics now = done_;
  now.cpu_s = cpu_s_.load();
  if (unfinished_ > 0) now.busy_s += std::chrono::duration<double>(Clock::now() - busy_since_).count();
  return now;
}

void Reads::close() {
  const std::lock_guard<std::mutex> alone(closed_);
  {
    const std::lock_guard<std::mutex> lock(lock_);
    if (closing_) return;
    closing_ = true;
    for (auto& [device, drive] : drives_) {
      for (const std::shared_ptr<Read>& read : drive.waiting) {
        fail(*read, read->offset + read->cut, "the reader was closed");
        finish_if_done(read);
      }
      for (Piece& piece : drive.again) {
        fail(*piece.read, piece.offset, "the reader was closed");
        --piece.read->pieces;
        finish_if_done(piece.read);
      }
      drive.waiting.clear();
      drive.again.clear();
    }
  }
  stop();
  for (const std::shared_ptr<OpenFile>& file : files_) ::close(file->descriptor);
}

bool Reads::next(Drive& drive, Piece& piece) {
  if (drive.under_way >= depth_) return false;
  if (!drive.again.empty()) {
    piece = std::move(drive.again.front());
    drive.again.pop_front();
    ++drive.under_way;
    return true;
  }
  while (!drive.waiting.empty() && !drive.waiting.front()->wrong.empty()) drive.waiting.pop_front();
  if (drive.waiting.empty()) return false;
  const std::shared_ptr<Read> read = drive.waiting.front();
  const int64_t nbytes = std::min(piece_bytes_, read->asked() - read->cut);
  piece = {read, read->offset + read->cut, nbytes, read->to + read->cut};
  read->cut += nbytes;
  ++read->pieces;
  ++drive.under_way;
  if (read->cut == read->asked()) drive.waiting.pop_front();
  return true;
}

void Reads::ended(Drive& drive, Piece& piece, int64_t result) {
  Read& read = *piece.read;
  --drive.under_way;
#ifdef POSIX_FADV_DONTNEED
  if (result > 0 && !read.file->direct) posix_fadvise(read.file->descriptor, piece.offset, result, POSIX_FADV_DONTNEED);
#endif
  const bool interrupted = result == -EINTR || result == -EAGAIN;
  // What came in part goes on at a multiple of the unit. Less than one unit is the end of the file.
  const int64_t whole = interrupted ? 0 : result / kReadUnit * kReadUnit;
  if (interrupted || (whole > 0 && whole < piece.nbytes)) {
    if (closing_) {
      fail(read, piece.offset, "the reader was closed");
    } else if (read.wrong.empty()) {
      piece.offset += whole, piece.to += whole, piece.nbytes -= whole;
      drive.again.push_back(std::move(piece));
      return;
    }
  } else if (result < 0) {
    fail(read, piece.offset, message(static_cast<int>(-result)));
  } else if (whole == 0 && piece.offset + result < read.offset + read.nbytes) {
    fail(read, piece.offset, "the file ends at byte " + std::to_string(piece.offset + result));
  }
  --read.pieces;
  finish_if_done(piece.read);
}

void Reads::fail(Read& read, int64_t at, const std::string& why) {
  if (!read.wrong.empty()) return;
  read.wrong = read.file->path + ": " + std::to_string(read.nbytes) + " bytes at " + std::to_string(read.offset) +
               " were asked for, at " + std::to_string(at) + ": " + why;
}

void Reads::finish_if_done(const std::shared_ptr<Read>& read) {
  if (read->pieces > 0 || (read->wrong.empty() && read->cut < read->asked())) return;
  if (read->finished()) return;
  if (read->wrong.empty()) {
    ++done_.reads;
    done_.bytes += read->nbytes;
  } else {
    ++done_.failed;
  }
  if (--unfinished_ == 0) done_.busy_s += std::chrono::duration<double>(Clock::now() - busy_since_).count();
  read->finish();
}

double thread_cpu_s() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

struct SignalsBlocked::Mask {
  sigset_t set;
};

SignalsBlocked::SignalsBlocked() : before_(std::make_unique<Mask>()) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before_->set);
}

SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_->set, nullptr); }

std::vector<std::string> reader_backends() {
  try {
    make_uring(kReadUnit, 1);
    return {"uring", "threads"};
  } catch (const std::system_error&) {
    return {"threads"};
  }
}

std::unique_ptr<Reader> make_reader(const std::string& backend, int64_t piece_bytes, int depth) {
  if (backend == "uring") return make_uring(piece_bytes, depth);
  if (backend == "threads") return make_threads(piece_bytes, depth);
  if (!backend.empty()) throw std::invalid_argument("no reader is called " + backend);
  try {
    return make_uring(piece_bytes, depth);
  } catch (const std::system_error&) {
    return make_threads(piece_bytes, depth);
  }
}

}  // namespace baltoro
