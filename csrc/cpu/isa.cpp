// Which instruction path kernels take; decided by feature flags, model numbers lie in virtual machines.
#include "cpu/isa.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/error.hpp"

namespace plait {
namespace {

#if defined(__x86_64__)
// As the processor says: not all compilers know its name.
bool has_avx512_bf16() {
#if defined(PLAIT_NO_AVX512_BF16)
  return false;
#else
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
#endif
}

// Flags of the processor, then of the system that saves tiles (bits 17 and 18 of XCR0). Then Linux
// permits them to this process, its threads and those it forks.
bool has_amx_bf16() {
#if defined(PLAIT_NO_AMX) || !defined(__linux__)
  return false;
#else
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned TILES = 3u << 17;
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
  return (low & TILES) == TILES && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#endif
}
#endif

Isa find_best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
    return Isa::portable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  if (!has_avx512_bf16()) return Isa::avx512;
  return has_amx_bf16() ? Isa::amx_bf16 : Isa::avx512_bf16;
#else
  return Isa::portable;
#endif
}

Isa vectors_of(Isa isa) {
  return std::min(isa == Isa::amx_bf16_emulated ? best_isa() : isa, Isa::avx512);
}

std::atomic<Isa> active{best_isa()}, vectors{vectors_of(best_isa())};

}  // namespace

Isa best_isa() {
  static const Isa best = find_best();
  return best;
}

Isa active_isa() { return active.load(std::memory_order_relaxed); }

Isa vector_isa() { return vectors.load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
  PLAIT_CHECK(isa <= best_isa() || isa == Isa::amx_bf16_emulated, "set_isa", "this processor has ",
              name_of(best_isa()), ", not ", name_of(isa));
  active.store(isa, std::memory_order_relaxed);
  vectors.store(vectors_of(isa), std::memory_order_relaxed);
}

void not_compiled(const char* kernel) {
  throw std::logic_error(std::string(kernel) + " was not compiled for path " +
                         name_of(vector_isa()) + " and these arguments");
}

const char* name_of(Isa isa) {
  static const char* names[] = {"portable",    "avx2",     "avx512",
                                "avx512_bf16", "amx_bf16", "amx_bf16_emulated"};
  return names[int(isa)];
}

}  // namespace plait
