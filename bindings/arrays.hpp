// NumPy arrays as the core's views. The Python layer has checked shapes and types; what is checked again here keeps a
// wrong call from reading outside its arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <span>
#include <stdexcept>
#include <vector>

#include "pysubmod/types.hpp"

namespace pysubmod::bindings {

namespace py = pybind11;

// A contiguous array of exactly this type; the caller made it so (no conversion hides here).
template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::span<const T> view(const Array<T>& array) {
    if (array.ndim() != 1) throw std::invalid_argument("expected a one-dimensional array");
    return {array.data(), static_cast<std::size_t>(array.size())};
}

// The rows of a two-dimensional array.
template <class T>
std::vector<std::span<const T>> rows_view(const Array<T>& array) {
    if (array.ndim() != 2) throw std::invalid_argument("expected a two-dimensional array");
    const auto length = static_cast<std::size_t>(array.shape(1));
    std::vector<std::span<const T>> rows;
    for (py::ssize_t i = 0; i < array.shape(0); ++i) rows.emplace_back(array.data() + i * array.shape(1), length);
    return rows;
}

template <class T>
py::array to_numpy(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// NumPy has no bfloat16: such rows come as their 16 bits, uint16, which is never a type of gradients of its own.
inline Storage storage_of(const py::array& array) {
    const char kind = array.dtype().kind();
    const auto size = array.itemsize();
    if (kind == 'u' && size == 2) return Storage::bfloat16;
    if (kind == 'f' && size == 2) return Storage::float16;
    if (kind == 'f' && size == 4) return Storage::float32;
    if (kind == 'f' && size == 8) return Storage::float64;
    throw std::invalid_argument("rows must be float16, bfloat16 (as uint16), float32 or float64");
}

inline RowBlock rows_of(const py::array& array) {
    if (array.ndim() != 2) throw std::invalid_argument("rows must be two-dimensional");
    return {static_cast<const std::byte*>(array.data()), array.shape(0), array.strides(0), array.strides(1),
            storage_of(array)};
}

// A Gram matrix: as many columns as rows, which are contiguous.
inline RowBlock gram_of(const py::array& array) {
    const RowBlock gram = rows_of(array);
    const bool contiguous = array.shape(1) <= 1 || array.strides(1) == array.itemsize();
    if (array.shape(1) != gram.rows || !contiguous || array.itemsize() < 4)
        throw std::invalid_argument("K must be (n, n), float32 or float64, with contiguous rows");
    return gram;
}

}  // namespace pysubmod::bindings
