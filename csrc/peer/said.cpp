// What ranks say about a collective as numbers to compare, and as words for whoever disagrees.
#include "peer/said.hpp"

namespace plait {
namespace {

constexpr int OTHER_TYPE = 255;  // that windows do not know

std::string type_text(int64_t number) { return number == OTHER_TYPE ? "another type" : name_of(DType(number)); }

// Of a pair of ranks: products of these with counts of bytes do not cancel by chance.
uint64_t factor(uint64_t from, uint64_t to) {
  uint64_t x = (from << 32 | to) + 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

}  // namespace

bool can_combine(DType in, DType out, Reduce op) {
  switch (in) {
    case DType::float32: case DType::bfloat16:
      return op == Reduce::sum && (out == DType::float32 || out == DType::bfloat16);
    case DType::float16: return false;
    default: return in == out;
  }
}

int64_t number_of(CallKind kind, int64_t detail, int64_t dtype, int64_t out_dtype) {
  return int64_t(kind) | dtype << 8 | out_dtype << 16 | detail << 24;
}

int64_t number_of_reduction(bool gather, Reduce op, int64_t dtype, int64_t out_dtype) {
  return number_of(gather ? CallKind::all_reduce : CallKind::reduce, int64_t(op), dtype, out_dtype);
}

int64_t type_number(const std::string& name) {
  for (int type = 0; type <= int(DType::uint64); type++)
    if (name == name_of(DType(type))) return type;
  return OTHER_TYPE;
}

uint64_t balance(int rank, const std::vector<int64_t>& sends, const std::vector<int64_t>& receives) {
  uint64_t layout = 0;
  for (size_t peer = 0; peer + 1 < sends.size(); peer++) {
    const int64_t sent = sends[peer + 1] - sends[peer], received = receives[peer + 1] - receives[peer];
    layout += factor(uint64_t(rank), peer) * uint64_t(sent) - factor(peer, uint64_t(rank)) * uint64_t(received);
  }
  return layout;
}

bool Said::agrees(const Said& other) const {
  if (call != other.call) return false;
  return kind() == int(CallKind::all_to_all) || (size == other.size && layout == other.layout);
}

std::string Said::text() const {
  static const char* kinds[] = {"a reduce_scatter", "an all_gather",     "an all_to_all", "a broadcast",
                                "a barrier",        "a call it refuses", "an all_reduce", "a matmul_reduce_scatter",
                                "a matmul_all_reduce", "an all_gather_matmul"};
  static const char* ops[] = {"sum", "max", "min"};
  const int kind = this->kind(), detail = int(call >> 24);
  const int64_t type = call >> 8 & 0xff, out_type = call >> 16 & 0xff;
  std::string text = kinds[kind];
  if (kind == 0 || kind == int(CallKind::all_reduce)) {
    text += std::string(" (") + ops[detail] + " of " + type_text(type);
    text += (type == out_type ? "" : " to " + type_text(out_type)) + ")";
  }
  if (kind >= 1 && kind <= 3) text += " (" + type_text(type) + ")";
  if (kind == 3) text += " from rank " + std::to_string(detail);
  if (kind != 2 && kind != 4 && kind != 5) text += " of " + std::to_string(size) + " bytes";
  return text;
}

bool same_collective(const Said& mine, const Said& theirs) {
  return theirs.kind() == mine.kind() || theirs.kind() == int(CallKind::refused);
}

std::string disagreement(int rank, const Said& mine, int peer, const Said& theirs) {
  const std::string what = "rank " + std::to_string(rank) + " is in " + mine.text() + ", rank " + std::to_string(peer) +
                           " in " + theirs.text();
  if (!same_collective(mine, theirs)) return "all ranks must call the same collectives in the same order: " + what;
  return (theirs.call == mine.call && theirs.size == mine.size
              ? "all ranks must give the same leaves, axis, bounds and size of the bias: "
              : "all ranks must give the same op, type and size: ") +
         what;
}

}  // namespace plait
