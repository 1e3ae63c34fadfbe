// pysubmod._core: plain functions over the plain doors of csrc/include/pysubmod/solve.hpp.
#include "pysubmod/solve.hpp"

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "arrays.hpp"
#include "cpu/gram_check.hpp"
#include "cuda/host_device.hpp"
#include "cuda/solve_device.hpp"
#include "device_problems.hpp"
#include "dlpack.hpp"
#include "options.hpp"

namespace {

using namespace pysubmod;
using namespace pysubmod::bindings;

// Either (rows, target), `blocks` being a list of two-dimensional arrays, or (one K, linear) with is_gram.
Problem problem_of(const py::list& blocks, std::span<const double> vector, bool is_gram, double target_norm) {
    const auto length = static_cast<py::ssize_t>(vector.size());
    Problem problem;
    for (const py::handle block : blocks) problem.rows.push_back(rows_of(py::cast<py::array>(block)));
    problem.is_gram = is_gram;
    if (!is_gram) {
        problem.target = vector;
        for (const py::handle block : blocks)
            if (py::cast<py::array>(block).shape(1) != length)
                throw std::invalid_argument("every block of rows must have as many columns as the target");
        return problem;
    }
    if (problem.rows.size() != 1) throw std::invalid_argument("one Gram matrix expected");
    problem.rows.clear();
    problem.gram = gram_of(py::cast<py::array>(blocks[0]));
    problem.linear = vector;
    problem.target_norm = target_norm;
    if (problem.gram.rows != length) throw std::invalid_argument("K must be (n, n) with n = len(linear)");
    return problem;
}

// A dict for each of the (m, d) targets; m = 1 with is_gram.
py::list solve(const py::list& blocks, const Array<double>& vectors, bool is_gram, double target_norm,
               const Array<std::int32_t>& group_of, const Array<Index>& budgets,
               const std::optional<Array<std::uint8_t>>& candidates, const Array<Index>& initial,
               const py::dict& options, int n_threads, const std::optional<std::string>& kernels,
               const py::object& callback) {
    const auto targets = rows_view(vectors);
    if (targets.empty() || (is_gram && targets.size() != 1)) throw std::invalid_argument("wrong number of targets");
    const Problem problem = problem_of(blocks, targets[0], is_gram, target_norm);
    Constraint constraint{view(group_of), view(budgets), {}, view(initial)};
    if (candidates) constraint.candidates = view(*candidates);
    const Options parsed = options_of(options);
    Execution execution;
    execution.n_threads = n_threads;
    if (kernels) execution.kernels = kernels->c_str();
    const std::vector<Solution> solutions = without_gil(callback, [&](Monitor& monitor) {
        return solve_each_cpu(problem, targets, constraint, parsed, execution, monitor);
    });
    py::list out;
    for (const Solution& solution : solutions) out.append(to_dict(solution));
    return out;
}

py::dict evaluate(const py::list& blocks, const Array<double>& vector, bool is_gram, double target_norm,
                  const Array<Index>& members, bool with_gains, const py::dict& options, int n_threads) {
    const Problem problem = problem_of(blocks, view(vector), is_gram, target_norm);
    const Options parsed = options_of(options);
    Execution execution;
    execution.n_threads = n_threads;
    const auto support = view(members);
    const Evaluation evaluation = without_gil(py::none(), [&](Monitor& monitor) {
        return evaluate_cpu(problem, support, parsed, with_gains, execution, monitor);
    });
    py::dict out;
    out["weights"] = to_numpy(evaluation.weights);
    out["gains"] = to_numpy(evaluation.gains);
    out["objective"] = evaluation.objective;
    out["residual_norm"] = evaluation.residual_norm;
    return out;
}

// Takes what `from_gram` made of K: square, float32 or float64, contiguous rows.
std::optional<std::pair<Index, Index>> gram_fault(const py::array& k, double tolerance) {
    const RowBlock gram = gram_of(k);
    const py::gil_scoped_release release;
    return cpu::gram_fault(gram, tolerance);
}

// The device's own algorithm, run by threads of the host on host memory: how it is tested where there is no device.
// `device` and `stream` are those of _cuda.solve and mean nothing here.
py::list solve_emulated(const py::list& problems, int /*device*/, std::uintptr_t /*stream*/,
                        const std::optional<py::dict>& outputs, int threads, int blocks) {
    return solve_device_problems(problems, outputs, [&](auto given, const auto* places, Monitor& monitor) {
        cuda::HostDevice host(threads, blocks);
        return cuda::solve_on_device(host, given, places, monitor);
    });
}

py::dict build_info() {
    py::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
    info["compiler"] = "gcc " __VERSION__;
#else
    info["compiler"] = "unknown";
#endif
    info["kernels"] = widest_kernels();
    return info;
}

}  // namespace

// No state outlives a call, so free-threaded Python needs no lock here.
PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
    module.doc() = "The compiled core of pysubmod. Private: call it through pysubmod's Python functions.";
    module.def("solve", &solve, py::arg("blocks"), py::arg("vectors"), py::arg("is_gram"), py::arg("target_norm"),
               py::arg("group_of").noconvert(), py::arg("budgets").noconvert(), py::arg("candidates"),
               py::arg("initial").noconvert(), py::arg("options"), py::arg("n_threads"), py::arg("kernels"),
               py::arg("callback"));
    module.def("evaluate", &evaluate, py::arg("blocks"), py::arg("vector"), py::arg("is_gram"), py::arg("target_norm"),
               py::arg("members").noconvert(), py::arg("with_gains"), py::arg("options"), py::arg("n_threads"));
    module.def("gram_fault", &gram_fault, py::arg("k"), py::arg("tolerance"));
    module.def("build_info", &build_info);
    module.def("read_dlpack", &read_dlpack, py::arg("capsule"));
    module.def("solve_emulated", &solve_emulated, py::arg("problems"), py::arg("device"), py::arg("stream"),
               py::arg("outputs"), py::arg("threads") = 1, py::arg("blocks") = 1);
}
