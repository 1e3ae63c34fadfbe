// Problems in device memory, from the dicts of pysubmod/solvers/_on_device.py; and what came of them, as dicts again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "cuda/solve_cuda.hpp"
#include "options.hpp"

namespace pysubmod::bindings {

// An entry that must be there, and may be None.
inline py::object entry(const py::dict& dict, const char* key) {
    if (!dict.contains(key)) throw std::invalid_argument(std::string("a problem without an entry '") + key + "'");
    return dict[key];
}

// The array itself: a view of a converted copy would outlive it.
template <class T>
std::span<const T> host_view(const py::object& array, const char* key) {
    if (array.is_none()) return {};
    if (!py::isinstance<Array<T>>(array)) throw std::invalid_argument(std::string(key) + ": wrong type of array");
    return view(py::reinterpret_borrow<Array<T>>(array));
}

inline Storage storage_named(const std::string& name) {
    if (name == "float16") return Storage::float16;
    if (name == "bfloat16") return Storage::bfloat16;
    if (name == "float32") return Storage::float32;
    if (name == "float64") return Storage::float64;
    throw std::invalid_argument("unknown number type '" + name + "'");
}

// From (pointer, shape, strides in elements, number type); a vector becomes one row.
inline cuda::View device_view(const py::object& given) {
    if (given.is_none()) return {};
    const auto parts = py::cast<py::tuple>(given);
    if (parts.size() != 4) throw std::invalid_argument("a view is (pointer, shape, strides, number type)");
    const auto shape = py::cast<std::vector<Index>>(parts[1]), strides = py::cast<std::vector<Index>>(parts[2]);
    const std::size_t last = shape.size() - 1;
    if (shape.empty() || shape.size() > 2 || strides.size() != shape.size())
        throw std::invalid_argument("a view has one or two dimensions");
    if (shape[last] > 1 && strides[last] != 1) throw std::invalid_argument("the last axis must be contiguous");
    cuda::View view;
    view.data = reinterpret_cast<const void*>(py::cast<std::uintptr_t>(parts[0]));
    view.rows = last == 1 ? shape[0] : 1;
    view.columns = shape[last];
    // Where it is never used, what it would be in a matrix of one's own.
    view.stride = last == 1 && shape[0] > 1 ? strides[0] : view.columns;
    view.storage = storage_named(py::cast<std::string>(parts[3]));
    return view;
}

inline cuda::DeviceProblem device_problem(const py::dict& given) {
    cuda::DeviceProblem problem;
    const auto gram = entry(given, "gram");
    problem.is_gram = !gram.is_none();
    problem.gram = device_view(gram);
    problem.linear = device_view(entry(given, "linear"));
    problem.rows = device_view(entry(given, "rows"));
    problem.target = device_view(entry(given, "target"));
    problem.host_vector = host_view<double>(entry(given, "host_vector"), "host_vector");
    problem.target_norm = py::cast<double>(entry(given, "target_norm"));
    problem.constraint = {host_view<std::int32_t>(entry(given, "group_of"), "group_of"),
                          host_view<Index>(entry(given, "budgets"), "budgets"),
                          host_view<std::uint8_t>(entry(given, "candidates"), "candidates"),
                          host_view<Index>(entry(given, "initial"), "initial")};
    problem.options = options_of(py::cast<py::dict>(entry(given, "options")));
    const cuda::View& matrix = problem.is_gram ? problem.gram : problem.rows;
    const cuda::View& vector = problem.is_gram ? problem.linear : problem.target;
    const bool on_host = !problem.host_vector.empty();
    const Index length = on_host ? static_cast<Index>(problem.host_vector.size()) : vector.columns;
    if (length != matrix.columns || (problem.is_gram && matrix.rows != matrix.columns))
        throw std::invalid_argument("the shapes of the matrix and the vector do not match");
    if (static_cast<Index>(problem.constraint.group_of.size()) != matrix.rows)
        throw std::invalid_argument("group_of must have an entry for each row");
    return problem;
}

// Where results stay on the device.
inline cuda::DeviceOutputs device_outputs(const py::dict& given, std::size_t n_problems) {
    const auto place = [&](const char* name, std::size_t dimensions) {
        const auto parts = py::cast<py::tuple>(entry(given, name));
        const auto shape = py::cast<std::vector<Index>>(parts[1]);
        if (shape.size() != dimensions || shape[0] != static_cast<Index>(n_problems))
            throw std::invalid_argument(std::string("outputs: wrong shape of ") + name);
        return std::pair(py::cast<std::uintptr_t>(parts[0]), shape.back());
    };
    const auto [indices, width] = place("indices", 2);
    const auto [weights, weights_width] = place("weights", 2);
    if (width != weights_width) throw std::invalid_argument("outputs: indices and weights differ in width");
    cuda::DeviceOutputs outputs;
    outputs.indices = reinterpret_cast<Index*>(indices);
    outputs.weights = reinterpret_cast<double*>(weights);
    outputs.n_selected = reinterpret_cast<Index*>(place("n_selected", 1).first);
    outputs.objective = reinterpret_cast<double*>(place("objective", 1).first);
    outputs.status = reinterpret_cast<Index*>(place("status", 1).first);
    outputs.width = width;
    return outputs;
}

inline py::object name_or_none(const std::string& name) {
    return name.empty() ? py::none() : py::object(py::str(name));
}

inline py::dict to_dict(const cuda::DeviceSolution& solved) {
    py::dict out = to_dict(solved.solution);
    out["device"] = solved.run.device;
    out["product"] = name_or_none(solved.run.product);
    out["product_type"] = name_or_none(solved.run.product_type);
    py::dict launch;
    launch["blocks"] = solved.run.blocks;
    launch["threads"] = solved.run.threads;
    out["launch"] = launch;
    out["device_bytes"] = solved.run.device_bytes;
    return out;
}

// What every `solve` of device problems does round `run(problems, outputs or null, monitor)`.
template <class Run>
py::list solve_device_problems(const py::list& given, const std::optional<py::dict>& outputs, Run run) {
    std::vector<cuda::DeviceProblem> problems;
    for (const py::handle problem : given) problems.push_back(device_problem(py::cast<py::dict>(problem)));
    cuda::DeviceOutputs places;
    if (outputs) places = device_outputs(*outputs, problems.size());
    const std::vector<cuda::DeviceSolution> solved = without_gil(py::none(), [&](Monitor& monitor) {
        return run(std::span<const cuda::DeviceProblem>(problems), outputs ? &places : nullptr, monitor);
    });
    py::list out;
    for (const cuda::DeviceSolution& solution : solved) out.append(to_dict(solution));
    return out;
}

}  // namespace pysubmod::bindings
