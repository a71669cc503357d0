// Panels of convolutions: pixels of images in shared memory, where matmul_panel.cuh has rows of matrices. What lies outside an
// image is zeros.
#pragma once
#include "cuda/matmul_panel.cuh"

namespace plait {

// Division of 0 <= n < 2^31 by a number known when a kernel starts, as a product: 2^(31 + l) / d rounded up, 2^l >= d, is too
// large by less than 2^l / d, which moves no quotient.
struct Divider {
  uint32_t factor;
  int shift;
  int by;

  Divider() = default;
  explicit Divider(int d) : shift(31), by(d) {
    while ((int64_t(1) << (shift - 31)) < d) shift++;
    factor = uint32_t(((uint64_t(1) << shift) + uint64_t(d) - 1) / uint64_t(d));
  }
  __device__ __forceinline__ int divide(int n) const { return int(uint64_t(uint32_t(n)) * factor >> shift); }
};

// An image (batch, height, width, channels) of bfloat16, pixels `pitch` elements apart, all on 16 bytes, and the image that its
// pixels are gathered for. BACKWARD: place (y, x) there meets here (y + padding - kh) / stride where that is whole; else
// y * stride - padding + kh.
struct ConvImage {
  const bfloat16* data;
  int pitch;
  int height, width;        // of this image
  int to_height, to_width;  // of the other
  int kernel_height, kernel_width, padding;
  Divider stride, across;  // across: to_width

  __device__ int64_t sample_stride() const { return int64_t(height) * width * pitch; }
};

// Rows are places of the other image, k is (tap, channel of the leaf): those of a leaf are [begin / taps, end / taps), in
// multiples of 8.
template <int WIDTH, bool BACKWARD, int THREADS>
struct PixelCopy {
  static constexpr int COUNT = WIDTH * 4 / THREADS, ROWS = THREADS / 4;
  const ConvImage& image;
  SharedAddress to;
  const bfloat16* sample[COUNT];
  int y[COUNT], x[COUNT];
  int channel, kh, kw;  // of this thread's chunk of the step to come
  int first, width;     // channels of the leaf

  __device__ PixelCopy(const ConvImage& image, int64_t first, int64_t places, SharedAddress panel) : image(image) {
    const int t = int(threadIdx.x), row = t / 4, chunk = t % 4;
    to = panel + SharedAddress(row * 64 + ((chunk ^ (row / 2 % 4)) * 16));
    const int area = image.to_height * image.to_width;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int64_t place = first + row + i * ROWS;
      const int within = int(place % area);
      sample[i] = image.data + place / area * image.sample_stride();
      const int oy = within / image.to_width, ox = within % image.to_width;
      y[i] = BACKWARD ? oy + image.padding : oy * image.stride.by - image.padding;
      x[i] = BACKWARD ? ox + image.padding : ox * image.stride.by - image.padding;
      if (place >= places) y[i] = -(1 << 30);  // outside, whatever the tap
    }
    channel = kh = kw = first = 0, width = 1;
  }
  __device__ __forceinline__ void start(SharedAddress stage, int k, int valid, const Leaf& leaf) {
    const int t = int(threadIdx.x);
    if (k == leaf.begin) {
      const int taps = image.kernel_height * image.kernel_width;
      first = int(leaf.begin / taps), width = int(leaf.end / taps) - first;
      channel = t % 4 * 8, kh = kw = 0;
    }
    while (channel >= width) {
      channel -= width;
      if (++kw == image.kernel_width) kw = 0, kh++;
    }
    const bool mine = t % 4 * 8 < valid;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      int sy = BACKWARD ? y[i] - kh : y[i] + kh, sx = BACKWARD ? x[i] - kw : x[i] + kw;
      bool there = mine && sy >= 0 && sx >= 0;
      if (BACKWARD && image.stride.by > 1) {
        const int qy = image.stride.divide(sy), qx = image.stride.divide(sx);
        there = there && qy * image.stride.by == sy && qx * image.stride.by == sx;
        sy = qy, sx = qx;
      }
      there = there && sy < image.height && sx < image.width;
      const int pixel = there ? sy * image.width + sx : 0;
      const bfloat16* const from = sample[i] + int64_t(pixel) * image.pitch + (first + channel);
      copy_async(to + stage + SharedAddress(i * ROWS * 64), from, there ? 16 : 0);
    }
    channel += STEP;
  }
};

// Rows of k are the places of the other image, sample by sample, columns are channels of the pixels that they meet at one tap
// (PIXELS), or of the other image itself, `place` elements apart: zeros where the tap meets no pixel.
template <int WIDTH, bool PIXELS, int THREADS>
struct SampleCopy {
  static constexpr int COUNT = STEP * WIDTH / 8 / THREADS, ROWS = THREADS / (WIDTH / 8);
  const ConvImage& image;
  const bfloat16 *data, *sample;
  int64_t apart;  // elements between samples
  int pitch, kh, kw, bytes, within;
  SharedAddress to;

  __device__ SampleCopy(const ConvImage& image, const bfloat16* of, int pixel_pitch, int tap, int64_t first, int64_t channels,
                        SharedAddress panel)
      : image(image), pitch(pixel_pitch), kh(tap / image.kernel_width), kw(tap % image.kernel_width), within(0) {
    static_assert(ROWS % 8 == 0, "a thread's chunks have one place in their rows");
    const int t = int(threadIdx.x), row = t / (WIDTH / 8), chunk = t % (WIDTH / 8);
    data = sample = of + first + chunk * 8;
    apart = PIXELS ? image.sample_stride() : int64_t(image.to_height) * image.to_width * pitch;
    bytes = chunk_bytes(channels - first - chunk * 8);
    to = panel + SharedAddress(row * WIDTH * 2 + ((chunk ^ (row % 8)) * 16));
  }
  __device__ __forceinline__ void start(SharedAddress stage, int k, int valid, const Leaf& leaf) {
    const int area = image.to_height * image.to_width, row = int(threadIdx.x) / (WIDTH / 8);
    if (k == leaf.begin) sample = data + k / area * apart, within = 0;  // leaves are of whole samples
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int place = within + row + i * ROWS;
      const int down = image.across.divide(place), aside = place - down * image.to_width;
      const int y = down * image.stride.by - image.padding + kh, x = aside * image.stride.by - image.padding + kw;
      const bool there = row + i * ROWS < valid && y >= 0 && y < image.height && x >= 0 && x < image.width;
      const int pixel = PIXELS ? y * image.width + x : place;
      copy_async(to + stage + SharedAddress(i * ROWS * WIDTH * 2), sample + int64_t(pixel) * pitch, there ? bytes : 0);
    }
    within += valid;
    if (within == area) within = 0, sample += apart;
  }
};

}  // namespace plait
