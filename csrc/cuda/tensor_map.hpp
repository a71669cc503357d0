// Descriptions of matrices for the TMA unit, encoded by the driver, which is found at run time: nothing links with it.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "core/dtype.hpp"

namespace plait {

// A bfloat16 tensor of three axes, innermost first: of stride 1, strides[0] and strides[1] elements (multiples of 8), at an
// address that is a multiple of 16. Boxes of box[0] x box[1] x box[2] elements, box[0] at most 64, lie in shared memory in
// lines of 128 bytes, swizzled; what is outside the tensor counts as zero.
struct TensorBox {
  const void* data;
  int64_t sizes[3], strides[2];
  int box[3];
};
CUtensorMap tensor_map(const TensorBox& tensor);

}  // namespace plait
