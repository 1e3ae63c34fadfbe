#include <unistd.h>

#include <atomic>
#include <stdexcept>

#include "cuda/device.hpp"

namespace pysubmod::cuda {
namespace {

// After these CUDA answers every call of this process with the same error; the list is that of the errors whose
// documentation says so.
bool is_lasting(cudaError_t error) {
    switch (error) {
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchFailure:
        case cudaErrorMpsClientTerminated:
        case cudaErrorExternalDevice:
#if CUDART_VERSION >= 12080
        case cudaErrorContained:
        case cudaErrorTensorMemoryLeak:
#endif
            return true;
        default:
            return false;
    }
}

const char* advice(cudaError_t error) {
    if (is_lasting(error))
        return ". CUDA is of no more use to this process, be it through this library or another: start a new one. "
               "Solving on the CPU goes on working";
    if (error == cudaErrorInitializationError)
        return ". If this process was forked from one that used CUDA, start it with the 'spawn' or 'forkserver' method";
    return "";
}

// The process in which the driver was woken here; 0: none yet. CUDA keeps such a state as well, but does not show it,
// and a forked child inherits it in pieces: so this one number is kept, against the rule that there are no globals.
std::atomic<pid_t>& user_of_driver() {
    static std::atomic<pid_t> user{0};
    return user;
}

}  // namespace

void check(cudaError_t error, const char* file, int line) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the runtime remembers an error until it is asked; the exception is the one report of it
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error) + advice(error));
}

void refuse_after_fork() {
    const pid_t user = user_of_driver();
    if (user != 0 && user != getpid())
        throw std::runtime_error(
            "CUDA cannot be used in a process forked from one that used it; start workers with the 'spawn' or "
            "'forkserver' method");
}

DeviceScope::DeviceScope(int index) {
    refuse_after_fork();
    CUDA_CHECK(cudaGetDevice(&former_));
    if (former_ == index) former_ = kSame;  // to set a device makes a context there, even where it changes nothing
    CUDA_CHECK(cudaSetDevice(index));
    user_of_driver() = getpid();
}

DeviceScope::~DeviceScope() {
    if (former_ != kSame) cudaSetDevice(former_);
}

std::vector<DeviceInfo> devices() {
    refuse_after_fork();
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return {};
    }
    CUDA_CHECK(error);
    user_of_driver() = getpid();  // a machine without a driver, which may fork as it likes, does not come here

    std::vector<DeviceInfo> found;
    for (int index = 0; index < count; ++index) {
        cudaDeviceProp properties;
        CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
        found.push_back({index, properties.name, 10 * properties.major + properties.minor, properties.totalGlobalMem,
                         properties.multiProcessorCount});
    }
    return found;
}

int device_of(const void* pointer) {
    refuse_after_fork();
    cudaPointerAttributes attributes;
    CUDA_CHECK(cudaPointerGetAttributes(&attributes, pointer));
    const bool is_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    return is_device ? attributes.device : -1;
}

std::string name_of(int index) {
#if CUDART_VERSION >= 12050
    // The driver, where it can be asked: the runtime would collect everything else about the card as well, which may
    // take longer than a small solve.
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    char name[256] = "";
    if (cudaGetDriverEntryPointByVersion("cuDeviceGetName", &function, 12000, cudaEnableDefault, &found) ==
            cudaSuccess &&
        found == cudaDriverEntryPointSuccess &&
        reinterpret_cast<int (*)(char*, int, int)>(function)(name, sizeof name, index) == 0)
        return name;
    cudaGetLastError();
#endif
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    return properties.name;
}

int driver_version() {
    int version = 0;
    CUDA_CHECK(cudaDriverGetVersion(&version));
    return version;
}

int cuda_version() { return CUDART_VERSION; }

}  // namespace pysubmod::cuda
