// Rotary position embedding (Su et al. 2021). Angles are formed in double: base^(-2i/D) once per
// call by our own log and exp series (relative error about 1e-15), times the position, reduced by
// pi/2 in two doubles; so cosine and sine are within 1e-7 at positions up to 1e6 and beyond. No
// table is kept: a position's angles serve all samples and heads.
#include <algorithm>
#include <vector>

#include "core/ops.hpp"
#include "core/expect.hpp"
#include "cpu/math.hpp"
#include "cpu/scratch.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

constexpr double LN2 = 0.69314718055994530942;

// ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)), x = 2^e m, m between sqrt(1/2) and sqrt(2).
double natural_log(double x) {
  int e = 0;
  while (x > 1.4142135623730951) x *= 0.5, e++;
  while (x < 0.70710678118654752) x *= 2.0, e--;
  const double s = (x - 1.0) / (x + 1.0), z = s * s;
  double sum = 0.0;
  for (int k = 23; k > 0; k -= 2) sum = sum * z + 1.0 / k;
  return e * LN2 + 2.0 * s * sum;
}

// e^-x for x >= 0: 2^-n e^-r, 0 <= r < ln 2, by Taylor.
double exp_minus(double x) {
  const int n = int(x / LN2);
  const double r = x - n * LN2;
  double sum = 1.0;
  for (int k = 20; k > 0; k--) sum = 1.0 - sum * r / k;
  for (int i = 0; i < n; i++) sum *= 0.5;
  return sum;
}

PLAIT_INLINE void angles_body(const double* frequency, double position, int64_t pairs, float sign,
                              float* __restrict__ cosine, float* __restrict__ sine) {
  for (int64_t i = 0; i < pairs; i++) {
    const math::SineCosine a = math::sine_cosine(frequency[i] * position);
    cosine[i] = a.cosine;
    sine[i] = a.sine * sign;
  }
}
PLAIT_KERNEL(angles, angles_body)

// All heads of one token.
template <class V, class T>
PLAIT_INLINE void rotate_body(const T* x, int64_t x_stride, int64_t heads, int64_t pairs,
                              const float* cosine, const float* sine, T* out, int64_t out_stride) {
  for (int64_t h = 0; h < heads; h++, x += x_stride, out += out_stride) {
    for (int64_t i = 0; i < pairs; i += WIDTH<V>) {
      const int64_t count = pairs - i;
      const V a = load<V>(x + i, count), b = load<V>(x + pairs + i, count);
      const V c = load<V>(cosine + i, count), s = load<V>(sine + i, count);
      store(out + i, fma(a, c, -(b * s)), count);
      store(out + pairs + i, fma(b, c, a * s), count);
    }
  }
}
PLAIT_VECTOR_KERNEL(rotate, rotate_body)

constexpr int64_t BLOCK =
    16;  // positions whose angles are held at a time: long enough runs of memory in each sample

}  // namespace

void rope(const ConstArray& x, float base, int64_t first_position, bool inverse, const Array& out) {
  const char* call = "rope";
  expect_ndim(call, "x", x, 4);
  const int64_t samples = x.shape[0], positions = x.shape[1], heads = x.shape[2], size = x.shape[3];
  expect_shape(call, "out", out, {samples, positions, heads, size});
  expect_dtype(call, "out", out, x.dtype);
  expect_unit_last(call, "x", x);
  expect_unit_last(call, "out", out);
  PLAIT_CHECK(size % 2 == 0, call, "the head size ", size, " is odd; pairs need an even one");
  PLAIT_CHECK(base >= 1.0f && base < math::INF, call, "base is ", base, ", expected at least 1");
  const int64_t pairs = size / 2;
  std::vector<double> frequency(pairs);
  for (int64_t i = 0; i < pairs; i++)
    frequency[i] = exp_minus(2.0 * double(i) / double(size) * natural_log(base));
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    const T* x_data = x.as<T>();
    T* out_data = out.as<T>();
    const int64_t grain = 1 + 16384 / (BLOCK * samples * heads * size + 1);
    parallel_for((positions + BLOCK - 1) / BLOCK, grain, [&](int64_t begin, int64_t end) {
      thread_local Scratch scratch;
      float* cosine = scratch.get<float>(2 * BLOCK * pairs);
      float* sine = cosine + BLOCK * pairs;
      for (int64_t first = begin * BLOCK; first < std::min(end * BLOCK, positions);
           first += BLOCK) {
        const int64_t count = std::min(BLOCK, positions - first);
        for (int64_t s = 0; s < count; s++)
          angles(frequency.data(), double(first_position + first + s), pairs,
                 inverse ? -1.0f : 1.0f, cosine + s * pairs, sine + s * pairs);
        for (int64_t b = 0; b < samples; b++)
          for (int64_t s = 0; s < count; s++)
            rotate(x_data + b * x.strides[0] + (first + s) * x.strides[1], x.strides[2], heads,
                   pairs, cosine + s * pairs, sine + s * pairs,
                   out_data + b * out.strides[0] + (first + s) * out.strides[1], out.strides[2]);
      }
    });
  });
}

}  // namespace plait
