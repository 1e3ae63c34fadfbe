// The plain doors of the CUDA solver: no templates. The bindings call these; solve_device.hpp has what they do.
#pragma once

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/numbers.hpp"
#include "pysubmod/solve.hpp"

namespace pysubmod::cuda {

// A problem whose numbers are in device memory. Either rows and target, or K and c = G t.
struct DeviceProblem {
    View rows;
    View target;  // (d,) or (m, d), whose mean is taken
    bool is_gram = false;
    View gram;    // (n, n) float32 or float64
    View linear;  // (n,)
    // In host memory, in place of target or linear where it is not empty.
    std::span<const double> host_vector;
    double target_norm = kUnknown;  // with a Gram matrix only
    Constraint constraint;          // host memory
    Options options;
};

// Where results are left on the device, for a caller who does not wait for them. For each of B problems room for
// `width` picks; what is not used holds -1 (indices) and 0 (weights).
struct DeviceOutputs {
    Index* indices = nullptr;     // (B, width)
    double* weights = nullptr;    // (B, width)
    Index* n_selected = nullptr;  // (B,)
    double* objective = nullptr;  // (B,)
    Index* status = nullptr;      // (B,) a Status, or what went wrong (Fault) as a negative number
    Index width = 0;
};

// What ran, for the caller to see.
struct DeviceRun {
    std::string device;            // name of the card
    std::string product;           // what formed K or the passes: "cublas", "built-in", or empty
    std::string product_type;      // in what type products were summed: "float32", "float64", or empty
    int blocks = 1, threads = 1;   // a problem's pursuit was given
    std::size_t device_bytes = 0;  // of memory taken
};

struct DeviceSolution {
    Solution solution;
    DeviceRun run;
};

// Solves independent problems, all pursuits on Gram matrices in one launch, on `stream` (a cudaStream_t) of device
// `index`. With `outputs` nothing is waited for and nothing returned. Throws InvalidArgument, Unbounded, Interrupted,
// OutOfDeviceMemory, or std::runtime_error for a fault of the device.
std::vector<DeviceSolution> solve_cuda(std::span<const DeviceProblem> problems, int index, std::uintptr_t stream,
                                       const DeviceOutputs* outputs, Monitor& monitor);

class OutOfDeviceMemory : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace pysubmod::cuda
