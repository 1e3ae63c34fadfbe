#include <stdexcept>

#include "cuda/device.hpp"

namespace pysubmod::cuda {

void check(cudaError_t error, const char* file, int line) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the runtime remembers an error until it is asked; the exception is the one report of it
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error));
}

DeviceScope::DeviceScope(int index) {
    CUDA_CHECK(cudaGetDevice(&former_));
    CUDA_CHECK(cudaSetDevice(index));
}

DeviceScope::~DeviceScope() { cudaSetDevice(former_); }  // a destructor does not throw; the next call would report

std::vector<DeviceInfo> devices() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return {};
    }
    CUDA_CHECK(error);

    std::vector<DeviceInfo> found;
    for (int index = 0; index < count; ++index) {
        cudaDeviceProp properties;
        CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
        found.push_back({index, properties.name, 10 * properties.major + properties.minor, properties.totalGlobalMem,
                         properties.multiProcessorCount});
    }
    return found;
}

int cuda_version() { return CUDART_VERSION; }

}  // namespace pysubmod::cuda
