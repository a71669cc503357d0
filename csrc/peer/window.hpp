// Collectives of the ranks of a node over memory that all of them map, as state machines.
//
// A collective moves in rounds. In a round every rank stages its piece in its own block (or, if its array lies in its
// arena, only says where), the readers copy or add straight from their peers' blocks, and tell when they have read.
// Rounds are numbered by epochs that only grow; staging alternates between two buffers, so a rank waits for its peers'
// reading of round e - 2 before it writes round e. advance() goes as far as it can without waiting and returns: the
// caller pokes what else must move. Sums follow the tree over leaves, whoever adds them.
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "core/array.hpp"
#include "peer/arena.hpp"
#include "peer/combine.hpp"

namespace plait {

// One reduction: every rank has nodes (k, outer, n); n is cut at bounds, one slice for each rank.
struct ReduceSpec {
  std::vector<int> nodes;       // k of every rank
  std::vector<int> merges;      // of the nodes of all ranks, in rank order
  std::vector<int64_t> bounds;  // size + 1 columns
  int64_t outer = 1;
  Reduce op = Reduce::sum;
  bool gather = false;  // every rank gets all slices; outer is 1
};

class Window {
 public:
  // peers[rank] maps the arena of that rank of this communicator; the own entry is null.
  Window(std::shared_ptr<Arena> arena, std::vector<std::shared_ptr<Mapping>> peers, int rank, int64_t staging);

  int64_t offset() const { return offset_; }          // of this rank's block in its arena, for the peers
  void connect(const std::vector<int64_t>& offsets);  // where theirs are
  bool open() const { return !blocks_.empty(); }
  void close();                                       // gives the block back; no peer may use this window any more

  // One collective at a time; its arrays must live until advance() has returned true. Arrays are contiguous.
  void start_reduce(const ConstArray& nodes, const ReduceSpec& spec, const std::optional<ConstArray>& bias,
                    const Array& out);
  void start_all_gather(const ConstArray& x, const std::vector<int64_t>& lengths, const Array& out);
  void start_all_to_all(const ConstArray& x, const std::vector<int64_t>& sends, const Array& out,
                        const std::vector<int64_t>& receives);
  void start_broadcast(const Array& x, int root);
  void start_barrier();

  // True once the collective is done here; waits about spin_us microseconds at most.
  bool advance(int64_t spin_us);
  int late_peer() const { return late_; }  // the rank that the last advance() waited for, or -1
  void abort();                            // every peer's next advance() fails and names this rank

 private:
  enum class Kind { reduce, all_gather, all_to_all, broadcast, barrier };
  enum Flag { READY, REDUCED, READ, FLAGS };  // staged; own slice reduced; peers' pieces read
  struct alignas(64) Line {
    std::atomic<int64_t> value;
  };
  struct alignas(64) Said {   // what a rank tells its peers about one collective
    int64_t source, out;      // offsets in its arena, or -1
    int64_t rounds;
    int64_t call, size;       // what all ranks must agree on: see describe()
  };
  struct Collective {
    Kind kind;
    int64_t first = 0;    // epoch of round 0
    int64_t rounds = 1;
    bool heard = false;   // what peers said is read and agrees, rounds is that of all ranks
    bool announced = false;
    int64_t staged = 0, reduced = 0, read = 0;  // rounds
    const char* source = nullptr;
    char* out = nullptr;
    Said said = {-1, -1, 1, 0, 0};
    ReduceSpec spec;  // of a reduction, with what follows
    std::optional<ConstArray> bias;
    DType dtype = DType::uint8, out_dtype = DType::uint8;
    int64_t window = 1, windows = 1, rows = 1;  // a round has `rows` rows of a `window` of columns of every slice
    bool small = false;                         // one round, in which every rank adds everything
    std::vector<int64_t> from, to;              // of moves, in bytes
    int root = 0;
  };
  struct Run {  // columns [start, start + count) of the whole in rows [row, row + rows)
    int64_t start, count, row, rows;
  };

  std::atomic<int64_t>& flag(int rank, int line) const;
  Said& said(int rank) const;
  char* staging(int rank, int64_t round) const;
  char* result(int rank, int64_t round) const;
  int64_t width() const { return now_->spec.bounds.back(); }
  Run run_of(int rank, int64_t round) const;

  Collective& begin(Kind kind, const void* source, void* out);
  bool all_reached(Flag kind, int64_t round);
  bool reached(Flag kind, int64_t round, int rank);
  void tell(Flag kind, int64_t round);
  void check_aborted();
  bool step();
  bool announce();
  bool hear();
  void check_said(int rank);
  bool stage();
  bool reduce();
  bool read();
  bool done();

  void stage_slices(int64_t round);
  void reduce_slice(int64_t round);
  const char* part(int rank, int64_t node, int64_t row, const Run& run, int64_t round) const;
  void read_piece(int rank, int64_t round);

  std::shared_ptr<Arena> arena_;
  std::vector<std::shared_ptr<Mapping>> peers_;
  int rank_, size_;
  int64_t cell_, offset_;
  std::vector<char*> blocks_, bases_;
  int64_t next_epoch_ = 1;
  int64_t collectives_ = 0;
  std::optional<Collective> now_;
  int late_ = -1;
};

}  // namespace plait
