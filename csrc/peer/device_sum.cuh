// One pack of elements of every node, wherever the nodes lie, added in the order of the tree, finished and stored wherever
// it is wanted. The sums that wait for their sibling lie in shared memory, each thread's own.
#pragma once
#include <type_traits>

#include "cuda/pack.cuh"
#include "peer/device_copy.cuh"
#include "peer/device_flags.cuh"
#include "peer/device_task.hpp"

namespace plait {

struct Part {
  const char* at;  // where element 0 of the slice would lie
  int64_t gap;     // between its rows, in elements
};

// What a block knows of its slice; in shared memory, before the sums that are set aside.
struct Places {
  Meeting::Kept kept;
  Part parts[MOST_PARTS];
  char* outs[MOST_RANKS];  // where element 0 of the slice's result would lie
};

template <class X, int N>
struct Values {
  typename Words<N * int(sizeof(X))>::type words;
  __device__ __forceinline__ void load(const char* from) { words = *reinterpret_cast<const decltype(words)*>(from); }
  __device__ __forceinline__ void store(char* to) const { *reinterpret_cast<decltype(words)*>(to) = words; }
  // As they are added: float for floats, else X.
  template <class A>
  __device__ __forceinline__ void get(A (&x)[N]) const {
    if constexpr (std::is_same_v<A, float>) {
      load_pack(reinterpret_cast<const X*>(&words), x);
    } else {
      const X* const all = reinterpret_cast<const X*>(&words);
#pragma unroll
      for (int i = 0; i < N; i++) x[i] = all[i];
    }
  }
  template <class A>
  __device__ __forceinline__ void set(const A (&x)[N]) {
    if constexpr (std::is_same_v<A, float>) {
      store_pack(reinterpret_cast<X*>(&words), x);
    } else {
      X* const all = reinterpret_cast<X*>(&words);
#pragma unroll
      for (int i = 0; i < N; i++) all[i] = x[i];
    }
  }
};
template <class X>
constexpr bool IS_FLOAT = std::is_same_v<X, float> || std::is_same_v<X, bfloat16>;
template <class X>
using Added = std::conditional_t<IS_FLOAT<X>, float, X>;

// lower op upper; integers wrap around.
template <class A>
__device__ __forceinline__ A combined(int op, A lower, A upper) {
  if constexpr (std::is_same_v<A, float>) {
    return lower + upper;
  } else {
    using U = std::make_unsigned_t<A>;
    if (op == int(Reduce::sum)) return A(U(lower) + U(upper));
    return (op == int(Reduce::max)) == (lower < upper) ? upper : lower;
  }
}

// Elements [e, e + N) of this rank's slice; `aside` is this thread's place for sums, a stride of the block apart. `outs`
// places are told; `column` is that of the slice's start.
template <class X, class Y, int N>
__device__ __forceinline__ void sum_pack(const ReduceTask& task, const Places& places, int outs, int64_t column, int64_t length,
                                         float* aside, int64_t e) {
  using A = Added<X>;
  constexpr int TOGETHER = 4;  // loads under way
  const int64_t row = task.outer > 1 ? e / length : 0;
  A top[N] = {};
  int depth = 0;
  for (int first = 0; first < task.parts; first += TOGETHER) {
    Values<X, N> some[TOGETHER];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++)
      if (first + k < task.parts) {
        const Part part = places.parts[first + k];
        some[k].load(part.at + (e + row * part.gap) * int64_t(sizeof(X)));
      }
#pragma unroll
    for (int k = 0; k < TOGETHER; k++)
      if (first + k < task.parts) {
        A x[N];
        some[k].get(x);
        int merges = IS_FLOAT<X> ? task.merges[first + k] : first + k > 0;  // integers have no order
        if (merges == 0) {
          if constexpr (IS_FLOAT<X>) {
            if (first + k > 0) {
#pragma unroll
              for (int i = 0; i < N; i++) aside[(depth * N + i) * int(blockDim.x)] = top[i];
              depth++;
            }
          }
#pragma unroll
          for (int i = 0; i < N; i++) top[i] = x[i];
        } else {
#pragma unroll
          for (int i = 0; i < N; i++) top[i] = combined(task.op, top[i], x[i]);
        }
        if constexpr (IS_FLOAT<X>) {
          for (; merges > 1; merges--) {
            depth--;
#pragma unroll
            for (int i = 0; i < N; i++) top[i] = aside[(depth * N + i) * int(blockDim.x)] + top[i];
          }
        }
      }
  }
  if constexpr (IS_FLOAT<X>) {
    if (task.bias) {
      int64_t at = (column + e - row * length) % task.bias_length;
#pragma unroll
      for (int i = 0; i < N; i++) {
        top[i] += task.bias[at];
        at = at + 1 == task.bias_length ? 0 : at + 1;
      }
    }
    if (task.update.master) {
      const UpdateTask& update = task.update;
      float master[N], first[N], second[N];
      load_pack(update.master + e, master), load_pack(update.first + e, first), load_pack(update.second + e, second);
#pragma unroll
      for (int i = 0; i < N; i++) {
        adamw_step(update.settings, top[i], master[i], first[i], second[i]);
        top[i] = master[i];
      }
      store_pack(update.master + e, master), store_pack(update.first + e, first), store_pack(update.second + e, second);
    }
    if (task.residual) {  // to what the sum would be stored as
      Values<Y, N> sum, other;
      sum.set(top);
      other.load(task.residual + (column + e) * int64_t(sizeof(Y)));
      float added[N];
      sum.get(top), other.get(added);
#pragma unroll
      for (int i = 0; i < N; i++) top[i] += added[i];
    }
  }
  Values<Y, N> result;
  result.set(top);
  for (int k = 0; k < outs; k++) result.store(places.outs[k] + e * int64_t(sizeof(Y)));
}

}  // namespace plait
