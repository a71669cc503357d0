// AMX's tiles in memory and its product of bfloat16 tiles, TDPBF16PS, in plain C++.
//
// After the operation that Intel documents (Software Developer's Manual, volume 2, TDPBF16PS): for
// each row m of the sum, 2 x 16 float32 temporaries start at 0; for k = 0 ... 15 and each column n
//     temp[2n] += a[m][2k] * b[k][2n],   temp[2n + 1] += a[m][2k + 1] * b[k][2n + 1]
// fused, then sum[m][n] += temp[2n] + temp[2n + 1] in two additions. Each of them rounds to nearest
// even and takes denormals for zeros, operands and results alike, whatever MXCSR says.
#include "cpu/amx.hpp"

#include "core/error.hpp"
#include "cpu/fma.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

struct State {
  bool configured = false;
  alignas(64) float tiles[8][AMX_ROWS * AMX_WORDS];
};
thread_local State state;

PLAIT_INLINE float upper_half(uint32_t word) {
  const uint32_t bits = word & 0xffff0000u;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

PLAIT_INLINE void product_body(float* sum, const float* a, const float* b) {
  uint32_t pairs[AMX_WORDS];
  for (int m = 0; m < AMX_ROWS; m++) {
    float even[AMX_WORDS] = {}, odd[AMX_WORDS] = {};
    for (int k = 0; k < AMX_WORDS; k++) {
      uint32_t pair;
      std::memcpy(&pair, a + m * AMX_WORDS + k, 4);
      std::memcpy(pairs, b + k * AMX_WORDS, sizeof(pairs));
      for (int n = 0; n < AMX_WORDS; n++) {
        even[n] = fused(upper_half(pair << 16), upper_half(pairs[n] << 16), even[n]);
        odd[n] = fused(upper_half(pair), upper_half(pairs[n]), odd[n]);
      }
    }
    for (int n = 0; n < AMX_WORDS; n++) sum[m * AMX_WORDS + n] += even[n] + odd[n];
  }
}

PLAIT_KERNEL(product, product_body)

}  // namespace

void EmulatedTiles::configure() {
  PLAIT_CHECK(!state.configured, "amx_bf16_emulated", "tiles are configured twice");
  state.configured = true;
}

void EmulatedTiles::release() { state.configured = false; }

float* EmulatedTiles::tile(int i) {
  PLAIT_CHECK(state.configured, "amx_bf16_emulated", "no tiles are configured in this thread");
  return state.tiles[i];
}

void EmulatedTiles::add_product(float* sum, const float* a, const float* b) {
  flush_denormals();
  product(sum, a, b);
  reset_rounding();
}

}  // namespace plait
