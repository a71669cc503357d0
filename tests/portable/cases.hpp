// Every op of core/ops.hpp as named calls on made-up inputs.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "tensor.hpp"

namespace plait::portable {

// A name begins with the op's. run() makes its inputs anew and returns what the op wrote.
struct Case {
  std::string name;
  std::function<std::vector<Tensor>()> run;
};
using Cases = std::vector<Case>;

// "matmul bfloat16 3x5"
std::string named(const std::string& op, DType dtype, const Shape& sizes);
// {0, ..., n} in `count` nearly equal leaves.
std::vector<int64_t> leaves_of(int64_t n, int64_t count);

void add_matmul(Cases&);
void add_sums(Cases&);
void add_random(Cases&);
void add_norms(Cases&);
void add_activations(Cases&);
void add_attention(Cases&);
void add_vocabulary(Cases&);
void add_convolution(Cases&);
void add_pools(Cases&);
void add_optimizers(Cases&);

// What must come out, known without the ops; returns how many of these checks failed, each of them
// told on stderr.
int check_answers();

}  // namespace plait::portable
