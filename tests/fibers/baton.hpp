// Kernels that wait for each other are OS threads, of which one at a time runs: who holds the baton. It goes on when none of
// its threads can, to another of those that wait for it: the first, the last or one by chance, as fibers::set_order says.
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
