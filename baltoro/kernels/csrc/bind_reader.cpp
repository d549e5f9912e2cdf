// The asynchronous reader for Python. reader.py has checked offsets, lengths and addresses, and keeps the memory alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <stdexcept>
#include <system_error>
#include <utility>

#include "reader.h"

namespace nb = nanobind;
using namespace baltoro;

constexpr double kSignals_s = 0.2;  // Ctrl-C is heard this often while a thread waits

// A forked child has none of the threads, and perhaps a locked mutex: it leaves its copy alone.
class Owner {
 public:
  explicit Owner(std::unique_ptr<Reader> reader) : reader_(reader.release()), process_(getpid()) {}
  Owner(Owner&& other) noexcept : reader_(std::exchange(other.reader_, nullptr)), process_(other.process_) {}
  ~Owner() {
    if (!forked()) delete reader_;
  }
  bool forked() const { return getpid() != process_; }
  Reader& reader() const {
    if (forked()) throw std::logic_error("the reader belongs to the process that was forked");
    return *reader_;
  }

 private:
  Reader* reader_;
  const pid_t process_;
};

// Sleeps without the GIL.
static void wait(const Read& read) {
  for (;;) {
    bool finished;
    {
      nb::gil_scoped_release released;
      finished = read.wait_for(kSignals_s);
    }
    if (finished) return;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

// std::system_error as the OSError that Python itself would raise.
template <class Call>
static auto with_os_errors(Call call) {
  try {
    return call();
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
  }
}

void bind_reader(nb::module_& m) {
  nb::set_leak_warnings(false);  // a process may end, by an exception too, while a reader is open

  nb::class_<OpenFile>(m, "OpenFile")
      .def_ro("direct", &OpenFile::direct)
      .def_ro("nbytes", &OpenFile::nbytes)
      .def_ro("device", &OpenFile::device)
      .def("difference", &OpenFile::difference);

  nb::class_<Read>(m, "Read").def("finished", &Read::finished).def("wait", &wait).def("error", &Read::error);

  nb::class_<ReadStatistics>(m, "ReadStatistics")
      .def_ro("bytes", &ReadStatistics::bytes)
      .def_ro("reads", &ReadStatistics::reads)
      .def_ro("failed", &ReadStatistics::failed)
      .def_ro("busy_s", &ReadStatistics::busy_s)
      .def_ro("cpu_s", &ReadStatistics::cpu_s);

  nb::class_<Owner>(m, "Reader")
      .def("backend", [](const Owner& owner) { return owner.reader().backend(); })
      .def("open",
           [](const Owner& owner, const std::string& path, bool direct) {
             return with_os_errors([&] {
               Reader& reader = owner.reader();
               nb::gil_scoped_release released;
               return std::const_pointer_cast<OpenFile>(reader.open(path, direct));
             });
           })
      .def("submit",
           [](const Owner& owner, const OpenFile& file, int64_t offset, int64_t nbytes, uintptr_t to) {
             // Not as nanobind would share it: that reference, given up by a thread of the reader, asks for the GIL,
             // perhaps under a lock for which its holder waits.
             return owner.reader().submit(file.shared_from_this(), offset, nbytes, reinterpret_cast<uint8_t*>(to));
           })
      .def("statistics", [](const Owner& owner) { return owner.reader().statistics(); })
      .def("close", [](const Owner& owner) {
        nb::gil_scoped_release released;
        if (!owner.forked()) owner.reader().close();
      });

  m.def("make_reader", [](const std::string& backend, int64_t piece_bytes, int depth) {
    return with_os_errors([&] { return Owner(make_reader(backend, piece_bytes, depth)); });
  });
  m.def("reader_backends", &reader_backends, "Names of the back ends that run here, best first.");
}
