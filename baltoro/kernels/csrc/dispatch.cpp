// Which targets were compiled, and which of them this CPU can run.
#if defined(BALTORO_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#ifdef BALTORO_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <stdexcept>

#include "kernels.h"

namespace baltoro {

namespace scalar {
extern const Target kernels;
}
#ifdef BALTORO_ARM64
namespace neon {
extern const Target kernels;
}
#endif
#ifdef BALTORO_X86
namespace avx2 {
extern const Target kernels;
}
namespace avx512 {
extern const Target kernels;
}
#endif
#ifdef BALTORO_AMX
namespace amx {
extern const Target kernels;
}

// CPUs with AMX keep its registers from a process until it asks Linux for them; its later threads have them too.
static bool may_use_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kNeeded) != kNeeded) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

static std::vector<const Target*> runnable() {
  std::vector<const Target*> found{&scalar::kernels};
#ifdef BALTORO_X86
  // These builtins read CPUID, and XGETBV too: whether the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2) found.push_back(&avx2::kernels);  // every CPU with AVX2 has F16C, which older compilers cannot ask for
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512bf16"))
    found.push_back(&avx512::kernels);
#ifdef BALTORO_AMX
  if (found.back() == &avx512::kernels && may_use_tiles()) found.push_back(&amx::kernels);
#endif
#endif
#ifdef BALTORO_ARM64
#ifdef __linux__
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&neon::kernels);
#else
  found.push_back(&neon::kernels);  // Apple's and Microsoft's 64-bit Arm machines have the dot products
#endif
#endif
  return found;
}

static const std::vector<const Target*>& table() {
  static const std::vector<const Target*> chosen = runnable();
  return chosen;
}

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const Target* each : table()) names.emplace_back(each->name);
  return names;
}

const Target& target(const std::string& name) {
  for (const Target* each : table())
    if (name == each->name) return *each;
  throw std::invalid_argument("no kernels named '" + name + "' on this CPU");
}

}  // namespace baltoro
