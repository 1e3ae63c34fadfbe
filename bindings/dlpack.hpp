// DLPack capsules, read without a library: https://dmlc.github.io/dlpack/latest/python_spec.html. The structures are
// the specification's; its binary interface is fixed within a major version.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace pysubmod::bindings {

namespace py = pybind11;

namespace dlpack {

struct Device {
    std::int32_t type, index;
};

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null: contiguous in C order
    std::uint64_t byte_offset;
};

struct Managed {
    static constexpr const char* fresh = "dltensor";
    static constexpr const char* used = "used_dltensor";
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
    bool is_readable() const { return true; }
};

struct ManagedVersioned {
    static constexpr const char* fresh = "dltensor_versioned";
    static constexpr const char* used = "used_dltensor_versioned";
    struct {
        std::uint32_t major, minor;
    } version;
    void* context;
    void (*deleter)(ManagedVersioned*);
    std::uint64_t flags;
    Tensor tensor;
    bool is_readable() const { return version.major <= 1; }
};

inline std::string name_of(const DataType& dtype) {
    static constexpr const char* kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    std::string name = dtype.code < 7 ? kinds[dtype.code] : "type code " + std::to_string(dtype.code) + " of bits ";
    if (dtype.code != 6) name += std::to_string(dtype.bits);
    return dtype.lanes == 1 ? name : name + " x " + std::to_string(dtype.lanes);
}

// Throws TypeError for what is no number that gradients are stored in.
inline std::string checked_name(const DataType& dtype) {
    const std::string name = name_of(dtype);
    if (name == "float16" || name == "bfloat16" || name == "float32" || name == "float64") return name;
    throw py::type_error("dtype " + name +
                         " is not a real floating-point type; use float16, bfloat16, float32 or float64");
}

inline py::tuple strides_of(const Tensor& tensor) {
    py::tuple strides(tensor.ndim);
    std::int64_t step = 1;
    for (std::int32_t axis = tensor.ndim - 1; axis >= 0; --axis) {
        strides[static_cast<std::size_t>(axis)] = tensor.strides ? tensor.strides[axis] : step;
        step *= tensor.shape[axis];
    }
    return strides;
}

template <class T>
void release(PyObject* owner) {
    auto* managed = static_cast<T*>(PyCapsule_GetPointer(owner, nullptr));
    if (managed->deleter) managed->deleter(managed);
}

// Takes the tensor over from its capsule. Until all of it has been understood the capsule stays the producer's.
template <class T>
py::tuple take(const py::object& capsule) {
    auto* managed = static_cast<T*>(PyCapsule_GetPointer(capsule.ptr(), T::fresh));
    if (!managed) throw py::error_already_set();
    if (!managed->is_readable()) throw py::type_error("the DLPack capsule has a version above 1, which is not known");
    const Tensor& tensor = managed->tensor;
    const std::string dtype = checked_name(tensor.dtype);
    py::tuple shape(tensor.ndim);
    for (std::int32_t axis = 0; axis < tensor.ndim; ++axis) shape[static_cast<std::size_t>(axis)] = tensor.shape[axis];
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
    const auto owner = py::reinterpret_steal<py::object>(PyCapsule_New(managed, nullptr, nullptr));
    if (!owner) throw py::error_already_set();
    py::tuple out =
        py::make_tuple(address, shape, strides_of(tensor), dtype, tensor.device.type, tensor.device.index, owner);
    if (PyCapsule_SetName(capsule.ptr(), T::used) != 0) throw py::error_already_set();
    PyCapsule_SetDestructor(owner.ptr(), &release<T>);
    return out;
}

}  // namespace dlpack

// (pointer, shape, strides in elements, name of the number type, device type, device index, owner). The memory lives
// as long as the owner does.
inline py::tuple read_dlpack(const py::object& capsule) {
    if (!PyCapsule_CheckExact(capsule.ptr())) throw py::type_error("expected a DLPack capsule");
    const char* name = PyCapsule_GetName(capsule.ptr());
    if (name && std::strcmp(name, dlpack::ManagedVersioned::fresh) == 0)
        return dlpack::take<dlpack::ManagedVersioned>(capsule);
    if (name && std::strcmp(name, dlpack::Managed::fresh) == 0) return dlpack::take<dlpack::Managed>(capsule);
    throw py::type_error(std::string("expected a DLPack capsule that nobody has read yet, got one named '") +
                         (name ? name : "") + "'");
}

}  // namespace pysubmod::bindings
