// A warp's view of a row of n elements: thread t takes elements 64 j + 2 t and 64 j + 2 t + 1, which are cpu/vec.hpp's
// lanes 2 t and 2 t + 1, so that fold_row gives the CPU's sums.
//
// A row is read once, and kept as it is stored: in registers (of up to 64 PIECES elements), or in shared memory, where each
// thread looks after its own (STAGED). Rows that are too long for that, odd or unaligned are read at every use (PIECES = 0),
// by WIDTH 2 or 1 elements. All give the same bits. A row may also be the sum of two, as it is stored, which is written too.
#pragma once
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/shared.cuh"
#include "cuda/warp.cuh"

namespace plait {

constexpr int STAGED = -1;

// Elements i and i + 1 of n; by WIDTH 1 the second may be beyond them, and is 0 then.
template <int WIDTH, class T>
__device__ __forceinline__ void load_two(const T* from, int64_t i, int64_t n, float (&x)[2]) {
  if constexpr (WIDTH == 2) {
    load_pack(from + i, x);
  } else {
    x[0] = to_float(from[i]);
    x[1] = i + 1 < n ? to_float(from[i + 1]) : 0.0f;
  }
}
template <int WIDTH, class T>
__device__ __forceinline__ void store_two(T* to, int64_t i, int64_t n, const float (&x)[2]) {
  if constexpr (WIDTH == 2) {
    store_pack(to + i, x);
  } else {
    const float first[1] = {x[0]}, second[1] = {x[1]};
    store_pack(to + i, first);
    if (i + 1 < n) store_pack(to + i + 1, second);
  }
}

constexpr int TOGETHER = 4;  // pairs of a second row that are under way before the first is waited for

// pairs[k], of element i + 64 k, becomes its sum with other's, as T stores it, which also goes to sum.
template <class T, int COUNT, class Pair>
__device__ __forceinline__ void add_some(Pair* pairs, const T* other, T* sum, int i, int n) {
  Pair others[COUNT];
#pragma unroll
  for (int k = 0; k < COUNT; k++)
    if (i + 64 * k < n) others[k] = *reinterpret_cast<const Pair*>(other + i + 64 * k);
#pragma unroll
  for (int k = 0; k < COUNT; k++) {
    if (i + 64 * k >= n) continue;
    float x[2], y[2];
    load_pack(reinterpret_cast<const T*>(&pairs[k]), x);
    load_pack(reinterpret_cast<const T*>(&others[k]), y);
    const float both[2] = {x[0] + y[0], x[1] + y[1]};
    store_pack(reinterpret_cast<T*>(&pairs[k]), both);
    *reinterpret_cast<Pair*>(sum + i + 64 * k) = pairs[k];
  }
}

// `number`: which of the rows that a warp keeps this is. Where other is not null the row is from + other, which goes to sum.
template <class T, int PIECES, int WIDTH>
struct Row {
  using Pair = typename Words<2 * int(sizeof(T))>::type;
  Pair pairs[PIECES];

  __device__ __forceinline__ Row(const T* from, int64_t n, int, const T* other = nullptr, T* sum = nullptr) {
    const int lane = int(threadIdx.x) % WARP;
#pragma unroll
    for (int j = 0; j < PIECES; j++)
      if (64 * j + 2 * lane < int(n)) pairs[j] = *reinterpret_cast<const Pair*>(from + 64 * j + 2 * lane);
    if (!other) return;
#pragma unroll
    for (int j = 0; j < PIECES; j += TOGETHER) add_some<T, TOGETHER>(pairs + j, other, sum, 64 * j + 2 * lane, int(n));
  }
  __device__ __forceinline__ void at(int j, int64_t, int64_t, float (&x)[2]) const {
    load_pack(reinterpret_cast<const T*>(&pairs[j]), x);
  }
};
template <class T, int WIDTH>
struct Row<T, STAGED, WIDTH> {
  using Pair = typename Words<2 * int(sizeof(T))>::type;
  Pair* pairs;

  __device__ __forceinline__ Row(const T* from, int64_t n, int number, const T* other = nullptr, T* sum = nullptr) {
    const int lane = int(threadIdx.x) % WARP, warps = int(blockDim.x) / WARP, pitch = (int(n) + 63) / 64 * WARP;
    pairs = dynamic_shared<Pair>() + (number * warps + int(threadIdx.x) / WARP) * pitch + lane;
    constexpr int MANY = 16;  // loads under way
    for (int first = 2 * lane; first < int(n); first += 64 * MANY) {
      Pair some[MANY];
#pragma unroll
      for (int k = 0; k < MANY; k++)
        if (first + 64 * k < int(n)) some[k] = *reinterpret_cast<const Pair*>(from + first + 64 * k);
      if (other) {
#pragma unroll
        for (int k = 0; k < MANY; k += 2 * TOGETHER)
          add_some<T, 2 * TOGETHER>(some + k, other, sum, first + 64 * k, int(n));
      }
#pragma unroll
      for (int k = 0; k < MANY; k++)
        if (first + 64 * k < int(n)) pairs[(first / 64 + k) * WARP] = some[k];
    }
  }
  __device__ __forceinline__ void at(int, int64_t i, int64_t, float (&x)[2]) const {
    load_pack(reinterpret_cast<const T*>(pairs + int(i) / 64 * WARP), x);
  }
};
template <class T, int WIDTH>
struct Row<T, 0, WIDTH> {
  const T* from;

  __device__ __forceinline__ Row(const T* from, int64_t n, int, const T* other = nullptr, T* sum = nullptr)
      : from(other ? sum : from) {
    if (!other) return;
    for (int64_t i = 2 * (threadIdx.x % WARP); i < n; i += 64) {
      float x[2], y[2];
      load_two<WIDTH>(from, i, n, x);
      load_two<WIDTH>(other, i, n, y);
#pragma unroll
      for (int k = 0; k < 2; k++) x[k] += y[k];
      store_two<WIDTH>(sum, i, n, x);  // each thread reads again what it wrote itself
    }
  }
  __device__ __forceinline__ void at(int, int64_t i, int64_t n, float (&x)[2]) const { load_two<WIDTH>(from, i, n, x); }
};

// f(j, i) for every pair of this thread.
template <int PIECES, class F>
__device__ __forceinline__ void each_pair(int64_t n, const F& f) {
  const int lane = int(threadIdx.x) % WARP;
  if constexpr (PIECES > 0) {
#pragma unroll
    for (int j = 0; j < PIECES; j++)
      if (64 * j + 2 * lane < int(n)) f(j, 64 * j + 2 * lane);
  } else {
    using Index = std::conditional_t<PIECES == STAGED, int, int64_t>;
#pragma unroll 4
    for (Index i = 2 * lane; i < Index(n); i += 64) f(0, i);
  }
}

// f(j, i, y) for every pair of this thread, with y that pair of `from`, or 0 if it is null. Some pairs are fetched together,
// then f is called on each: it may write over them.
template <int PIECES, int WIDTH, class T, class F>
__device__ __forceinline__ void each_pair_beside(const T* from, int64_t n, const F& f) {
  const int lane = int(threadIdx.x) % WARP;
  constexpr int COUNT = PIECES > 0 ? TOGETHER : 2 * TOGETHER;
  using Index = std::conditional_t<PIECES == 0, int64_t, int>;
  using Pair = typename Words<2 * int(sizeof(T))>::type;
  const auto some = [&](int j, Index first) {
    Pair others[COUNT] = {};
    if (from) {
#pragma unroll
      for (int k = 0; k < COUNT; k++) {
        if (first + 64 * k >= Index(n)) continue;
        if constexpr (WIDTH == 2) {
          others[k] = *reinterpret_cast<const Pair*>(from + first + 64 * k);
        } else {
          float y[2];
          load_two<WIDTH>(from, first + 64 * k, n, y);
          store_pack(reinterpret_cast<T*>(&others[k]), y);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
      if (first + 64 * k >= Index(n)) continue;
      float y[2];
      load_pack(reinterpret_cast<const T*>(&others[k]), y);
      f(j + k, first + 64 * k, y);
    }
  };
  if constexpr (PIECES > 0) {
#pragma unroll
    for (int j = 0; j < PIECES; j += COUNT) some(j, 64 * j + 2 * lane);
  } else {
    for (Index first = 2 * lane; first < Index(n); first += 64 * COUNT) some(0, first);
  }
}

// SUMS sums over the row at once: terms(j, i, t) gives those of a pair, t[sum][element].
template <int PIECES, int WIDTH, int SUMS, class F>
__device__ __forceinline__ void sum_row(int64_t n, const F& terms, float (&sum)[SUMS]) {
  float lanes[SUMS][2] = {};
  each_pair<PIECES>(n, [&](int j, int64_t i) {
    float t[SUMS][2];
    terms(j, i, t);
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
      lanes[s][0] += t[s][0];
      if (WIDTH == 2 || i + 1 < n) lanes[s][1] += t[s][1];
    }
  });
#pragma unroll
  for (int s = 0; s < SUMS; s++) sum[s] = fold_row(lanes[s][0], lanes[s][1]);
}

// run(pieces, width, grid): constants, and a grid of a warp for each row. A warp keeps `kept` rows of elements of T.
template <class T, class Run>
void choose_row(int64_t rows, int64_t n, int kept, bool pairs, const Run& run) {
  using std::integral_constant;
  const auto use = [&](auto pieces, auto width, int warps, int64_t bytes) {
    run(pieces, width, Grid{unsigned((rows + warps - 1) / warps), unsigned(warps * WARP), size_t(warps * bytes)});
  };
  const integral_constant<int, 2> two;
  if (!pairs) return use(integral_constant<int, 0>{}, integral_constant<int, 1>{}, 4, 0);
  if (n <= 64 * 4) return use(integral_constant<int, 4>{}, two, 4, 0);
  if (n <= 64 * 12) return use(integral_constant<int, 12>{}, two, 4, 0);
  if (n <= 64 * 16) return use(integral_constant<int, 16>{}, two, 4, 0);
  const int64_t bytes = kept * ((n + 63) / 64 * 64) * int64_t(sizeof(T));  // of a warp
  if (bytes > 32 * 1024) return use(integral_constant<int, 0>{}, two, 4, 0);
  use(integral_constant<int, STAGED>{}, two, bytes <= 16 * 1024 ? 4 : 2, bytes);
}

}  // namespace plait
