#include "cuda/solve_cuda.hpp"

#include "cuda/cuda_device.cuh"
#include "cuda/solve_device.hpp"

namespace pysubmod::cuda {

std::vector<DeviceSolution> solve_cuda(std::span<const DeviceProblem> problems, int index, std::uintptr_t stream,
                                       const DeviceOutputs* outputs, Monitor& monitor) {
    CudaDevice device(index, reinterpret_cast<cudaStream_t>(stream));
    return solve_on_device(device, problems, outputs, monitor);
}

}  // namespace pysubmod::cuda
