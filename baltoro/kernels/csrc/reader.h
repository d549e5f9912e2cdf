// Asynchronous reads of large aligned ranges past the page cache: the contract.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace baltoro {

constexpr int64_t kReadUnit = 4096;  // offsets, lengths and addresses are multiples: what O_DIRECT asks for anywhere

// An open file, and what it was when it was opened. Its descriptor is closed with the reader.
struct OpenFile : std::enable_shared_from_this<OpenFile> {
  std::string path;
  int descriptor;
  bool direct;  // false: read through the page cache, whose pages are given back at once
  uint64_t device, inode;
  int64_t nbytes, changed_ns;

  OpenFile(std::string path, int descriptor, bool direct, uint64_t device, uint64_t inode, int64_t nbytes,
           int64_t changed_ns)
      : path(std::move(path)),
        descriptor(descriptor),
        direct(direct),
        device(device),
        inode(inode),
        nbytes(nbytes),
        changed_ns(changed_ns) {}

  // What is different now at its path; empty while it is the same file with the same size and time of change.
  std::string difference() const;
};

// A range on its way into memory, which must stay until it is finished. All members may be used from any thread.
class Read {
 public:
  const std::shared_ptr<const OpenFile> file;
  const int64_t offset;  // of the first byte
  const int64_t nbytes;  // that must come; the unit in which they end is asked for whole and may be cut by the end
  uint8_t* const to;

  Read(std::shared_ptr<const OpenFile> file, int64_t offset, int64_t nbytes, uint8_t* to)
      : file(std::move(file)), offset(offset), nbytes(nbytes), to(to) {}

  bool finished() const;
  bool wait_for(double seconds) const;  // whether it has finished by then; sleeps, never spins
  std::string error() const;            // empty: all bytes came. Only of a finished read.

 private:
  friend class Reads;
  int64_t asked() const { return (nbytes + kReadUnit - 1) / kReadUnit * kReadUnit; }
  void finish();

  // Of the reader, under its lock.
  int64_t cut = 0;     // bytes that were cut into pieces
  int64_t pieces = 0;  // that are not at their end
  std::string wrong;

  mutable std::mutex lock_;
  mutable std::condition_variable end_;
  bool finished_ = false;
};

struct ReadStatistics {
  int64_t bytes = 0, reads = 0, failed = 0;  // of finished reads
  double busy_s = 0;                         // with at least one read under way
  double cpu_s = 0;                          // of the threads that read; interrupts are nobody's
};

// One for any number of files and drives. A drive has its own queue, in the order of submission, and its own share of
// pieces under way, so that a slow one holds up nobody else's. Thread-safe.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual const char* backend() const = 0;
  // Throws std::system_error. direct: past the page cache, where the filesystem can.
  virtual std::shared_ptr<const OpenFile> open(const std::string& path, bool direct) = 0;
  virtual std::shared_ptr<Read> submit(std::shared_ptr<const OpenFile> file, int64_t offset, int64_t nbytes,
                                       uint8_t* to) = 0;
  virtual ReadStatistics statistics() const = 0;
  // Nothing is written to memory after this. Reads that were not whole yet end with an error. Idempotent.
  virtual void close() = 0;
};

// backend: "uring", "threads", or "" for the first that runs here. Throws std::invalid_argument for another name,
// std::system_error where the named one does not run. piece_bytes is a multiple of kReadUnit; depth: pieces of one
// drive that are under way together.
std::unique_ptr<Reader> make_reader(const std::string& backend, int64_t piece_bytes, int depth);
std::vector<std::string> reader_backends();  // that run here, best first

}  // namespace baltoro
