// What the tests' CUDA says of its device and of those of other processes.
#pragma once
#include <string>

namespace fibers {

struct Pretended {
  int number = 0;  // of the GPU that this process uses: processes with the same one share it
  std::string name = "fibers of a CPU";
  bool sees = true, reaches = true, opens = true;  // other GPUs; handles of memory
};
Pretended& pretended();

int allocations();  // of device memory, and mappings of that of others, that were not given back

}  // namespace fibers
