// What CUDA devices there are, and the two tools that everything in this room uses: a check that throws, and a guard
// for the current device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <vector>

namespace pysubmod::cuda {

// Throws std::runtime_error with the place of the call and the error's name and text, if `error` is one.
void check(cudaError_t error, const char* file, int line);

#define CUDA_CHECK(call) ::pysubmod::cuda::check((call), __FILE__, __LINE__)

// Throws std::runtime_error in a process that was forked from one in which this library had used CUDA: there every call
// of CUDA fails, or worse. Everything that wakes the driver calls it first (DeviceScope does).
void refuse_after_fork();

// Makes a device the calling thread's current one and gives the former one back at the end of the scope.
class DeviceScope {
  public:
    explicit DeviceScope(int index);
    ~DeviceScope();
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

  private:
    static constexpr int kSame = -1;
    int former_ = 0;
};

struct DeviceInfo {
    int index;
    std::string name;
    int compute_capability;  // 10 * major + minor: 90 for sm_90
    std::size_t memory_bytes;
    int multiprocessors;
};

// The devices this process may use. Empty where there is no device or no (or too old a) driver: a machine without
// CUDA is not an error here; asking such a machine for a CUDA solve is. Creates no context. Throws std::runtime_error
// on any other failure.
std::vector<DeviceInfo> devices();

// The name of a device's card.
std::string name_of(int index);

// The index of the device whose memory a pointer points into; -1 for memory of the host.
int device_of(const void* pointer);

// The newest CUDA version that the driver knows, in the same form as below; 0 where there is no driver.
int driver_version();

// The CUDA version this file was compiled with, as in the toolkit: 1000 * major + 10 * minor.
int cuda_version();

}  // namespace pysubmod::cuda
