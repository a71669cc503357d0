#include "cuda/tensor_map.hpp"

#include "cuda/check.hpp"

namespace plait {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  PLAIT_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || !function)
    throw DeviceError("the NVIDIA driver has no cuTensorMapEncodeTiled: this GPU's matmul needs a driver for CUDA 12 or later");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap tensor_map(const TensorBox& t) {
  static const Encode encode = encoder();
  CUtensorMap map;
  const cuuint64_t sizes[3] = {cuuint64_t(t.sizes[0]), cuuint64_t(t.sizes[1]), cuuint64_t(t.sizes[2])};
  const cuuint64_t strides[2] = {cuuint64_t(t.strides[0]) * 2, cuuint64_t(t.strides[1]) * 2};
  const cuuint32_t box[3] = {cuuint32_t(t.box[0]), cuuint32_t(t.box[1]), cuuint32_t(t.box[2])}, steps[3] = {1, 1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(t.data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail("cuTensorMapEncodeTiled", "error ", int(result), " for sizes (", t.sizes[2], ", ", t.sizes[1], ", ", t.sizes[0],
         "), strides (", t.strides[1], ", ", t.strides[0], ", 1), boxes (", t.box[2], ", ", t.box[1], ", ", t.box[0], ") at ",
         t.data);
  return map;
}

}  // namespace plait
