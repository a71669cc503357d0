// Prints a digest of the bits of every case, one a line, after each instruction path of this
// processor with 1 thread and with 3 gave the same; exit code 1 where they did not or an answer is
// wrong. Two processors agree if they print the same lines (tools/test-aarch64).
#include <cinttypes>
#include <cstdio>

#include "cases.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

using namespace plait;
using namespace plait::portable;

int main() {
  int failures = 0;
  const Isa best = best_isa();
  for (int path = 0; path <= int(best); path++) {
    set_isa(Isa(path));
    failures += check_answers();
  }
  Cases cases;
  for (auto add : {add_matmul, add_sums, add_random, add_norms, add_activations, add_attention,
                   add_vocabulary, add_convolution, add_pools, add_optimizers})
    add(cases);
  for (const Case& one : cases) {
    uint64_t first = 0;
    for (int path = 0; path <= int(best); path++)
      for (int count : {1, 3}) {
        set_isa(Isa(path));
        set_threads(count);
        reset_rounding();  // as the bindings do
        uint64_t found = 0;
        try {
          found = digest(one.run());
        } catch (const std::exception& error) {
          std::fprintf(stderr, "%s: %s\n", one.name.c_str(), error.what());
          return 1;
        }
        if (path == 0 && count == 1) first = found;
        if (found == first) continue;
        std::fprintf(stderr, "%s: %s with %d threads gives other bits\n", one.name.c_str(),
                     name_of(Isa(path)), count);
        failures++;
      }
    std::printf("%s: %016" PRIx64 "\n", one.name.c_str(), first);
  }
  std::fprintf(stderr, "%zu cases, instruction paths up to %s, 1 and 3 threads: %d failures\n",
               cases.size(), name_of(best), failures);
  return failures ? 1 : 0;
}
