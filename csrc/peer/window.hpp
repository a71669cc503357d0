// Collectives of the ranks of a node over memory that all of them map, as state machines.
//
// Every collective has a number, and begins with every rank saying in its peers' memory what it is about to do; so
// little data that it fits goes along, and that is all. The rest moves in rounds. In a round every rank stages its
// pieces in cells of its own block, one for each peer (or, if its array lies in its arena, only says where); the peer
// copies or adds straight from there. Results of a reduction that all ranks want go back to where the piece came from:
// into the cell, or into the array itself if that lies in its arena. If all arrays do, there is one round, and nothing
// is staged.
//
// Rounds are numbered by epochs that only grow; staging alternates between two buffers, so a rank waits until its peers
// have taken what it staged in round e - 2 before it writes round e. advance() goes as far as it can without waiting
// and returns: the caller pokes what else must move. Sums follow the tree over leaves, whoever adds them.
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "peer/arena.hpp"
#include "peer/call.hpp"

namespace plait {

class Window {
 public:
  // peers[rank] maps the arena of that rank of this communicator; the own entry is null.
  Window(std::shared_ptr<Arena> arena, std::vector<std::shared_ptr<Mapping>> peers, int rank, int64_t staging);

  int64_t offset() const { return offset_; }          // of this rank's block in its arena, for the peers
  void connect(const std::vector<int64_t>& offsets);  // where theirs are
  bool open() const { return !blocks_.empty(); }
  void close();                                       // gives the block back; no peer may use this window any more
  const Room& room() const { return room_; }

  // One collective at a time; its arrays must live until advance() has returned true.
  void start(std::shared_ptr<const Call> call);
  // True once the collective is done here; waits about spin_us microseconds at most.
  bool advance(int64_t spin_us);
  int late_peer() const { return late_; }  // the rank that the last advance() waited for, or -1
  void abort();                            // every peer's next advance() fails and names this rank

 private:
  enum Flag { READY, TAKEN, FLAGS };  // pieces staged; the peers' pieces taken, and results of them put back
  struct alignas(64) Line {
    std::atomic<int64_t> value;
  };
  struct alignas(64) Letter {  // what a peer said, in this rank's block; inlined data follow
    std::atomic<int64_t> number;
    Said said;
  };
  struct Run {  // columns [start, start + count) of the whole in rows [row, row + rows)
    int64_t start, count, row, rows;
  };

  std::atomic<int64_t>& flag(int rank, int line) const;
  Letter& letter(int rank, int from, int64_t number) const;
  const Said& said(int rank) const { return letter(room_.rank, rank, number_).said; }
  char* cell(int rank, int of, int64_t round) const;  // of rank's staging, what it has for (reductions) rank `of`

  bool heard_of(int rank, int64_t number);
  bool reached(Flag kind, int64_t round, int rank);
  bool all_reached(Flag kind, int64_t round);
  void tell(Flag kind, int64_t round);
  void check_aborted();
  void check_said(int rank);
  void check_balance();
  void check_unread();
  void skip();
  bool step();
  bool announce();
  bool hear();
  bool stage();
  bool take();
  bool collect();
  bool done();
  void end();

  // window_pieces.cpp
  Run run_of(int rank, int64_t round) const;
  void write_piece(char* to, int rank, int64_t round) const;
  const char* piece(int rank, int64_t node, int64_t row, const Run& run, int64_t round) const;
  void reduce_slice(int64_t round);
  void move_piece(int rank, int64_t round);
  void collect_result(int rank, int64_t round);

  std::shared_ptr<Arena> arena_;
  std::vector<std::shared_ptr<Mapping>> peers_;
  Room room_;
  int64_t offset_, bytes_of_letter_;
  std::vector<char*> blocks_, bases_;

  std::shared_ptr<const Call> now_;
  Said own_, before_;               // of it, and of the one before
  int64_t number_ = 0, epoch_ = 1;  // of it, and of its round 0
  int64_t window_ = 1, windows_ = 1, rounds_ = 1;
  bool announced_ = false, heard_ = false;  // what peers said is read and agrees
  bool unread_ = false;                     // of the collective before, not what all peers said
  bool direct_ = false;                     // all arrays lie in arenas
  int64_t staged_ = 0, taken_ = 0, collected_ = 0;  // rounds
  std::vector<const char*> parts_;          // of reduce_slice
  std::vector<char*> outs_;
  int late_ = -1;
};

}  // namespace plait
