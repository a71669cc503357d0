// A stable radix sort of (key, position) pairs. Everything is integers, so the result is one, however the threads run.
#pragma once
#include "cuda/launch.cuh"

namespace plait {

struct Pairs {
  int32_t *keys, *positions;
};

// What sort_pairs needs besides its two arrays of pairs, in int32.
int64_t sort_scratch(int64_t n);

// Sorts n pairs by keys in [0, most]; `other` is as long. Returns the one that holds the result.
Pairs sort_pairs(const At& at, Pairs pairs, Pairs other, int64_t n, int64_t most, int* counts);

}  // namespace plait
