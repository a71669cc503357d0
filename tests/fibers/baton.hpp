// Kernels that wait for each other are OS threads, of which one at a time runs: who holds the baton. It goes on when none of
// its threads can, to another of those that wait for it: the first in order 0 of fibers::set_order, else one by chance.
#pragma once

namespace fibers {

class Baton {
 public:
  Baton();  // waits for it
  ~Baton();
  Baton(const Baton&) = delete;
  static void pass();  // to another kernel if there is one, else to other processes
};

}  // namespace fibers
