// Convolution, batch norm, pools.
#include "cases.hpp"
#include "core/ops.hpp"

namespace plait::portable {
namespace {

using Outputs = std::vector<Tensor>;

struct Image {
  int64_t batch, height, width, channels, outputs, kernel, stride, padding;
  int64_t out_height() const { return (height + 2 * padding - kernel) / stride + 1; }
  int64_t out_width() const { return (width + 2 * padding - kernel) / stride + 1; }
  Shape x() const { return {batch, height, width, channels}; }
  Shape out() const { return {batch, out_height(), out_width(), outputs}; }
  Shape weight(bool input_first) const {
    return input_first ? Shape{channels, kernel, kernel, outputs}
                       : Shape{outputs, kernel, kernel, channels};
  }
  Shape sizes() const { return {batch, height, width, channels, outputs, kernel, stride, padding}; }
};

const Image images[] = {{1, 1, 1, 1, 1, 1, 1, 0},
                        {3, 9, 8, 11, 35, 3, 2, 1},
                        {2, 13, 11, 3, 17, 5, 1, 2},
                        {2, 7, 7, 33, 20, 1, 1, 0}};

void add_conv(Cases& cases, DType dtype, const Image& s) {
  for (bool input_first : {false, true})
    cases.push_back(
        {named("conv2d_forward", dtype, s.sizes()) + (input_first ? " input first" : ""), [=] {
           Tensor out = empty(dtype, s.out()), single = empty(F32, s.out());
           const Tensor x = normal(dtype, s.x(), 1),
                        weight = normal(dtype, s.weight(input_first), 2);
           const auto leaves = leaves_of(s.channels, input_first && s.channels > 3 ? 3 : 1);
           conv2d_forward(x, weight, input_first, s.stride, s.padding, leaves, out);
           conv2d_forward(x, weight, input_first, s.stride, s.padding, leaves, single);
           return Outputs{out, single};
         }});
  cases.push_back({named("conv2d_backward", dtype, s.sizes()), [=] {
                     Tensor grad_x = empty(dtype, s.x());
                     conv2d_backward(normal(dtype, s.out(), 1), normal(dtype, s.weight(false), 2),
                                     false, s.stride, s.padding,
                                     leaves_of(s.outputs, s.outputs > 3 ? 3 : 1), grad_x);
                     return Outputs{grad_x};
                   }});
  for (bool input_first : {false, true})
    cases.push_back(
        {named("conv2d_backward_weight", dtype, s.sizes()) + (input_first ? " input first" : ""),
         [=] {
           Shape stack = s.weight(input_first);
           stack.insert(stack.begin(), 2);
           Tensor grad_weight = normal(F32, stack, 3);
           conv2d_backward_weight(normal(dtype, s.out(), 1), normal(dtype, s.x(), 2), input_first,
                                  s.stride, s.padding, {0, 1, s.batch}, {0, 1}, 0, true,
                                  grad_weight);
           return Outputs{grad_weight};
         }});
}

void add_batch_norm(Cases& cases, DType dtype, DType weights, int64_t samples, int64_t length,
                    int64_t c) {
  const int64_t rows = samples * length;
  const Shape flat{rows, c}, whole{samples, length, c};
  auto x = [=] { return normal(dtype, flat, 1, 3); };
  auto grad = [=] { return normal(dtype, flat, 2); };
  for (bool training : {true, false})
    cases.push_back(
        {named("batch_norm_forward", dtype, whole) + (training ? "" : " evaluation"), [=] {
           Tensor out = empty(dtype, flat), mean = normal(F32, {c}, 3), variance = positive({c}, 4);
           batch_norm_forward(x(), normal(weights, {c}, 5), normal(weights, {c}, 6), 1e-5f,
                              training, mean, variance, out);
           return Outputs{out, mean, variance};
         }});
  cases.push_back({named("batch_norm_backward", dtype, whole), [=] {
                     Tensor grad_x = empty(dtype, flat);
                     batch_norm_backward(grad(), x(), normal(weights, {c}, 5), normal(F32, {c}, 3),
                                         positive({c}, 4), 1e-5f, grad_x);
                     return Outputs{grad_x};
                   }});
  cases.push_back({named("batch_norm_backward_weight", dtype, whole), [=] {
                     Tensor grad_weight = normal(F32, {c}, 7), grad_bias = normal(F32, {c}, 8);
                     batch_norm_backward_weight(reshaped(grad(), whole), reshaped(x(), whole),
                                                normal(F32, {c}, 3), positive({c}, 4), 1e-5f, true,
                                                grad_weight, grad_bias);
                     return Outputs{grad_weight, grad_bias};
                   }});
  cases.push_back({named("add_statistic", F32, {c}), [=] {
                     Tensor total = normal(F32, {c}, 7);
                     add_statistic(positive({c}, 4), 1.25f, 3.0f, true, total);
                     return Outputs{total};
                   }});
  cases.push_back({named("moving_average", F32, {c}), [=] {
                     Tensor running = normal(F32, {c}, 8);
                     moving_average(normal(F32, {c}, 7), 12.0f, 0.1f, running);
                     return Outputs{running};
                   }});
}

}  // namespace

void add_convolution(Cases& cases) {
  for (DType dtype : {F32, BF16}) {
    for (const Image& image : images) add_conv(cases, dtype, image);
    add_batch_norm(cases, dtype, dtype, 1, 1, 1);
    add_batch_norm(cases, dtype, dtype, 5, 61, 70);
    add_batch_norm(cases, dtype, F32, 3, 29, 133);
  }
}

void add_pools(Cases& cases) {
  for (DType dtype : {F32, BF16}) {
    for (int64_t channels : {1, 17, 130}) {
      const Shape shape{3, 11, 9, channels}, pooled{3, 6, 5, channels};
      for (bool any : {false, true}) {
        auto forward = [=](const Tensor& out, const Tensor& index) {
          max_pool_forward(any ? any_bits(dtype, shape, 1) : normal(dtype, shape, 1), 3, 2, 1, out,
                           index);
        };
        const std::string rest = any ? " of any bits" : "";
        cases.push_back({named("max_pool_forward", dtype, shape) + rest, [=] {
                           const Tensor out = empty(dtype, pooled),
                                        index = empty(DType::int32, pooled);
                           forward(out, index);
                           return Outputs{out, index};
                         }});
        cases.push_back({named("max_pool_backward", dtype, shape) + rest, [=] {
                           const Tensor out = empty(dtype, pooled),
                                        index = empty(DType::int32, pooled);
                           Tensor grad_x = empty(dtype, shape);
                           forward(out, index);
                           max_pool_backward(normal(dtype, pooled, 2), index, 3, 2, 1, grad_x);
                           return Outputs{grad_x};
                         }});
      }
      cases.push_back({named("mean_pool_forward", dtype, {5, 71, channels}), [=] {
                         Tensor out = empty(dtype, {5, channels});
                         mean_pool_forward(normal(dtype, {5, 71, channels}, 1), out);
                         return Outputs{out};
                       }});
      cases.push_back({named("mean_pool_backward", dtype, {5, 71, channels}), [=] {
                         Tensor grad_x = empty(dtype, {5, 71, channels});
                         mean_pool_backward(normal(dtype, {5, channels}, 1), grad_x);
                         return Outputs{grad_x};
                       }});
    }
  }
}

}  // namespace plait::portable
