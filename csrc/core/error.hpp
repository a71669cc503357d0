// Errors carry the call and the offending values; the bindings turn them into Python's ValueError.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace plait {

struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A call of a device's library failed. The bindings add the op and the shapes it was called with.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(const char* call, const Args&... args) {
  std::ostringstream text;
  text << call << ": ";
  (text << ... << args);
  throw ValueError(text.str());
}

}  // namespace plait

// PLAIT_CHECK(condition, "matmul", "inner sizes differ: ", k, " and ", k2)
#define PLAIT_CHECK(condition, call, ...) \
  do {                                    \
    if (!(condition)) ::plait::fail(call, __VA_ARGS__); \
  } while (0)
