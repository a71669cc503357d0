// What one collective of a window is to do, checked and laid out once; it may be started as often as wanted.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/array.hpp"
#include "peer/said.hpp"

namespace plait {

struct Call {
  using Kind = CallKind;
  Kind kind = Kind::barrier;
  const char* source = nullptr;
  char* out = nullptr;
  Said said;
  bool inlined = false;  // so little that it travels with what is said, and every rank adds everything
  ReduceSpec spec;       // of a reduction, with what follows
  std::optional<ConstArray> bias;
  DType dtype = DType::uint8, out_dtype = DType::uint8;
  int64_t longest = 1;                // columns of a slice
  int64_t window = 1, windows = 1, rows = 1;  // a round has `rows` rows of a `window` of columns of every slice
  std::vector<int64_t> from, to;      // of moves, in bytes
  int root = 0;

  bool gathers() const { return kind == Kind::reduce && spec.gather; }
  int64_t width() const { return spec.bounds.back(); }
};

constexpr int64_t ALIGN = 64;  // of results behind parts, in bytes

// What a window of `size` ranks has room for, in bytes.
struct Room {
  int rank, size;
  int64_t cell;    // staged for one peer in a round
  int64_t inside;  // of a collective that is inlined, to each peer
};

// Arrays are contiguous, and must live as long as the call. ValueError if anything does not fit. Moves take bytes; dtype
// says of which type they are.
Call reduce_call(const Room& room, const ConstArray& nodes, const ReduceSpec& spec,
                 const std::optional<ConstArray>& bias, const Array& out);
Call all_gather_call(const Room& room, const ConstArray& x, const std::vector<int64_t>& lengths, const Array& out,
                     const std::string& dtype);
Call all_to_all_call(const Room& room, const ConstArray& x, const std::vector<int64_t>& sends, const Array& out,
                     const std::vector<int64_t>& receives, const std::string& dtype);
Call broadcast_call(const Room& room, const Array& x, int root, const std::string& dtype);
Call barrier_call();
// Before a reduction that goes another way: ranks hear that they mean the same one.
Call outside_call(Reduce op, const std::string& dtype, const std::string& out_dtype, bool gather, int64_t bytes);
// In place of a collective whose arguments this rank refuses: its peers are told so.
Call refused_call();

}  // namespace plait
