// pysubmod._cuda: plain doors to csrc/cuda. Built only where a CUDA compiler was found.
#include <pybind11/pybind11.h>

#include "cuda/device.hpp"

namespace py = pybind11;

namespace {

py::list devices() {
    std::vector<pysubmod::cuda::DeviceInfo> found;
    {
        // The first call wakes the driver, which takes a while.
        py::gil_scoped_release released;
        found = pysubmod::cuda::devices();
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
    const int version = pysubmod::cuda::cuda_version();
    return py::make_tuple(version / 1000, version % 1000 / 10);
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "The CUDA backend. Internal: the rest of the package reaches it through _backends.py.";
    module.def(
        "devices", &devices,
        "List of dicts (index, name, compute_capability, as 90 for sm_90, memory_bytes, multiprocessors), one per "
        "CUDA device; empty where there is no device or no driver. RuntimeError on any other fault.");
    module.def("cuda_version", &cuda_version, "(major, minor) of the CUDA toolkit this module was compiled with.");
}
