// Sums and moving averages of statistics of a batch: the CPU's bits, and no need to look at them on the host.
#include "core/statistic.hpp"

#include "core/ops.hpp"
#include "cuda/elementwise.cuh"

namespace plait {
namespace {

struct Begin {
  Statistic one;
  __device__ void apply(const float (&x)[1], float (&total)[1]) const { total[0] = 0.0f + one.of(x[0]); }
};
struct Continue {
  Statistic one;
  __device__ void apply(const float (&x)[2], float (&total)[1]) const { total[0] = x[1] + one.of(x[0]); }
};
struct Move {
  MovingAverage one;
  __device__ void apply(const float (&x)[2], float (&running)[1]) const { running[0] = one.next(x[0], x[1]); }
};

}  // namespace

void add_statistic(const ConstArray& x, float factor, float samples, bool accumulate, const Array& total) {
  const At at = PLAIT_AT("add_statistic");
  check_statistic(at.kernel, "x", x, total);
  const Statistic one{factor, samples};
  if (accumulate)
    elementwise<float, float, 2>(at, {&x, &total, &total}, Continue{one});
  else
    elementwise<float, float, 1>(at, {&x, &total}, Begin{one});
}

void moving_average(const ConstArray& total, float count, float momentum, const Array& running) {
  const At at = PLAIT_AT("moving_average");
  check_statistic(at.kernel, "total", total, running);
  elementwise<float, float, 2>(at, {&total, &running, &running}, Move{{count, momentum}});
}

}  // namespace plait
