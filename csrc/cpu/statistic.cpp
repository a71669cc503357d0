// Sums and moving averages of statistics of a batch: a few numbers a channel.
#include "core/statistic.hpp"

#include "core/ops.hpp"

namespace plait {

void add_statistic(const ConstArray& x, float factor, float samples, bool accumulate, const Array& total) {
  check_statistic("add_statistic", "x", x, total);
  const Statistic one{factor, samples};
  const float* from = x.as<float>();
  float* to = total.as<float>();
  for (int64_t i = 0; i < x.shape[0]; i++) to[i] = (accumulate ? to[i] : 0.0f) + one.of(from[i]);
}

void moving_average(const ConstArray& total, float count, float momentum, const Array& running) {
  check_statistic("moving_average", "total", total, running);
  const MovingAverage one{count, momentum};
  const float* from = total.as<float>();
  float* to = running.as<float>();
  for (int64_t i = 0; i < total.shape[0]; i++) to[i] = one.next(from[i], to[i]);
}

}  // namespace plait
