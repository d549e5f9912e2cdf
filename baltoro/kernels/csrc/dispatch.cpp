// Which targets were compiled, and which of them this CPU can run.
#if defined(BALTORO_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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
