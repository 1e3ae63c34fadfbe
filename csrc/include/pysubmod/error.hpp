// What can go wrong inside the core. Misuse is an exception; numerical outcomes are a Status (types.hpp).
#pragma once

#include <stdexcept>

namespace pysubmod {

// An argument the caller can mend. The bindings turn it into Python's ValueError.
class InvalidArgument : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

// f(S) is infinite: the linear term has a component that C cannot see (a tilt, or a c that is not G t, with
// ridge = 0 and dependent rows).
class Unbounded : public InvalidArgument {
  public:
    using InvalidArgument::InvalidArgument;
};

// The caller asked to stop (Ctrl-C, or a callback that raised). Thrown at a safe point; nothing is half-written.
class Interrupted : public std::runtime_error {
  public:
    Interrupted() : std::runtime_error("interrupted") {}
};

}  // namespace pysubmod
