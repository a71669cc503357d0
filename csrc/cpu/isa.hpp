// Instruction paths. A kernel body is written once, always inlined into one wrapper per path; the path is
// chosen at run time by set_isa, so that all ranks of a world can agree on the least of them.
#pragma once
#include <string>

#include "core/inline.hpp"

namespace plait {

// amx_bf16_emulated is amx_bf16 in plain C++ (amx.hpp), for tests on any processor; never the best.
enum class Isa : int { portable, avx2, avx512, avx512_bf16, amx_bf16, amx_bf16_emulated };

Isa best_isa();                     // what this processor has, and Linux permits
Isa active_isa();                   // what kernels use: best_isa() until set
Isa vector_isa();                   // of it what most kernels know: at most avx512
void set_isa(Isa isa);              // throws ValueError beyond best_isa(), but for the emulation
const char* name_of(Isa isa);

[[noreturn]] void not_compiled(const char* kernel);  // for this path and these arguments

template <Isa, class...>
inline constexpr bool on_every_path = true;

}  // namespace plait

// PLAIT_KERNEL(name, body) defines name(args...) that runs body(args...) compiled for the active path.
// body must be PLAIT_INLINE and take pointers and numbers by value; lambdas inside it would lose the path.
// PLAIT_KERNEL_WHERE compiles it only for those paths and arguments where CALLED<path, Args...>: no others occur.
#if defined(__x86_64__)
#define PLAIT_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2"), noinline))
#define PLAIT_TARGET_AVX2 __attribute__((target("avx2,fma,bmi2"), noinline))
#define PLAIT_KERNEL_WHERE(name, body, CALLED)                                          \
  template <class... Args>                                                              \
  PLAIT_TARGET_AVX512 void name##_avx512(Args... args) {                                \
    if constexpr (CALLED<::plait::Isa::avx512, Args...>) body(args...);                 \
    else ::plait::not_compiled(#name);                                                  \
  }                                                                                     \
  template <class... Args>                                                              \
  PLAIT_TARGET_AVX2 void name##_avx2(Args... args) {                                    \
    if constexpr (CALLED<::plait::Isa::avx2, Args...>) body(args...);                   \
    else ::plait::not_compiled(#name);                                                  \
  }                                                                                     \
  template <class... Args>                                                              \
  __attribute__((noinline)) void name##_portable(Args... args) {                        \
    if constexpr (CALLED<::plait::Isa::portable, Args...>) body(args...);               \
    else ::plait::not_compiled(#name);                                                  \
  }                                                                                     \
  template <class... Args>                                                              \
  void name(Args... args) {                                                             \
    switch (::plait::vector_isa()) {                                                    \
      case ::plait::Isa::avx512: return name##_avx512(args...);                         \
      case ::plait::Isa::avx2: return name##_avx2(args...);                             \
      default: return name##_portable(args...);                                         \
    }                                                                                   \
  }
#else  // one path
#define PLAIT_KERNEL_WHERE(name, body, CALLED)                                          \
  template <class... Args>                                                              \
  __attribute__((noinline)) void name(Args... args) {                                   \
    if constexpr (CALLED<::plait::Isa::portable, Args...>) body(args...);               \
    else ::plait::not_compiled(#name);                                                  \
  }
#endif
#define PLAIT_KERNEL(name, body) PLAIT_KERNEL_WHERE(name, body, ::plait::on_every_path)
