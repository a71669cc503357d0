// Which instruction path kernels take; decided by feature flags, model numbers lie in virtual machines.
#include "cpu/isa.hpp"

#include <atomic>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/error.hpp"

namespace plait {

#if defined(__x86_64__)
// As the processor says: not all compilers know its name.
static bool has_avx512_bf16() {
#if defined(PLAIT_NO_AVX512_BF16)
  return false;
#else
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
#endif
}
#endif

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
    return Isa::portable;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return has_avx512_bf16() ? Isa::avx512_bf16 : Isa::avx512;
  return Isa::avx2;
#else
  return Isa::portable;
#endif
}

static std::atomic<int> active{int(best_isa())};

Isa active_isa() { return Isa(active.load(std::memory_order_relaxed)); }

void set_isa(Isa isa) {
  PLAIT_CHECK(isa <= best_isa(), "set_isa", "this processor has ", name_of(best_isa()), ", not ",
              name_of(isa));
  active.store(int(isa), std::memory_order_relaxed);
}

const char* name_of(Isa isa) {
  static const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16"};
  return names[int(isa)];
}

}  // namespace plait
