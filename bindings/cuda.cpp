// pysubmod._cuda: plain doors to csrc/cuda. Built only where a CUDA compiler was found.
#include <pybind11/pybind11.h>

#include "cuda/device.hpp"
#include "cuda/solve_cuda.hpp"
#include "device_problems.hpp"

namespace {

using namespace pysubmod;
using namespace pysubmod::bindings;

py::list devices() {
    std::vector<cuda::DeviceInfo> found;
    {
        // The first call wakes the driver, which takes a while.
        const py::gil_scoped_release released;
        found = cuda::devices();
    }
    py::list list;
    for (const auto& device : found) {
        py::dict entry;
        entry["index"] = device.index;
        entry["name"] = device.name;
        entry["compute_capability"] = device.compute_capability;
        entry["memory_bytes"] = device.memory_bytes;
        entry["multiprocessors"] = device.multiprocessors;
        list.append(entry);
    }
    return list;
}

py::tuple cuda_version() {
    const int version = cuda::cuda_version();
    return py::make_tuple(version / 1000, version % 1000 / 10);
}

int device_of(std::uintptr_t pointer) { return cuda::device_of(reinterpret_cast<const void*>(pointer)); }

py::list solve(const py::list& problems, int device, std::uintptr_t stream, const std::optional<py::dict>& outputs) {
    return solve_device_problems(problems, outputs, [&](auto given, const auto* places, Monitor& monitor) {
        return cuda::solve_cuda(given, device, stream, places, monitor);
    });
}

void translate(std::exception_ptr error) {
    try {
        if (error) std::rethrow_exception(error);
    } catch (const cuda::OutOfDeviceMemory& full) {
        py::set_error(PyExc_MemoryError, full.what());
    }
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    py::register_local_exception_translator(&translate);
    module.doc() = "The CUDA backend. Internal: the rest of the package reaches it through _backends.py.";
    module.def(
        "devices", &devices,
        "List of dicts (index, name, compute_capability, as 90 for sm_90, memory_bytes, multiprocessors), one per "
        "CUDA device; empty where there is no device or no driver. RuntimeError on any other fault.");
    module.def("device_of", &device_of, py::arg("pointer"),
               "Index of the CUDA device whose memory a pointer points into; -1 for host memory.");
    module.def("solve", &solve, py::arg("problems"), py::arg("device"), py::arg("stream"), py::arg("outputs"),
               "A dict for each problem, solved on `stream` (a cudaStream_t) of a device; with `outputs` none, and "
               "nothing is waited for. MemoryError where the device has too little memory.");
    module.def("driver_version", &cuda::driver_version,
               "The newest CUDA version that the driver knows, 1000 * major + 10 * minor; 0 where there is no driver.");
    module.def("cuda_version", &cuda_version, "(major, minor) of the CUDA toolkit this module was compiled with.");
}
