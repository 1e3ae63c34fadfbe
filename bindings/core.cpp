// pysubmod._core: plain functions over the plain doors of csrc/include/pysubmod/solve.hpp.
#include "pysubmod/solve.hpp"

#include <pybind11/stl.h>

#include <chrono>
#include <exception>
#include <map>
#include <optional>
#include <string>

#include "arrays.hpp"
#include "cpu/gram_check.hpp"
#include "pysubmod/error.hpp"

namespace {

using namespace pysubmod;
using namespace pysubmod::bindings;

// Carries the solver's questions to Python. The solver runs without the GIL; each question takes it. What Python raises
// is kept and thrown again at the door, when every thread of the solve has stopped.
class PythonMonitor : public Monitor {
  public:
    explicit PythonMonitor(const py::object& callback) : callback_(callback), wanted_(!callback.is_none()) {}

    bool interrupted() override {
        const auto now = std::chrono::steady_clock::now();
        if (now < next_look_) return false;
        next_look_ = now + std::chrono::milliseconds(20);
        const py::gil_scoped_acquire gil;
        return keep_error([] {
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            return false;
        });
    }

    bool picked(const Progress& progress) override {
        if (!wanted_) {
            if (interrupted()) throw Interrupted();
            return false;
        }
        const py::gil_scoped_acquire gil;
        const bool stop = keep_error([&] {
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            const py::object answer = callback_(progress.n_selected, progress.rank, progress.index, progress.gain,
                                                progress.objective, progress.residual_norm);
            return py::cast<bool>(py::bool_(answer));
        });
        if (error_) throw Interrupted();
        return stop;
    }

    void rethrow() {
        if (error_) std::rethrow_exception(error_);
    }

  private:
    template <class Call>
    bool keep_error(Call call) {
        try {
            return call();
        } catch (...) {
            error_ = std::current_exception();
            return true;
        }
    }

    const py::object& callback_;
    bool wanted_;
    std::exception_ptr error_;
    std::chrono::steady_clock::time_point next_look_{};
};

// Runs `work(monitor)` without the GIL and turns Interrupted back into the Python error that caused it.
template <class Work>
auto without_gil(const py::object& callback, Work work) {
    PythonMonitor monitor(callback);
    try {
        const py::gil_scoped_release release;
        return work(monitor);
    } catch (const Interrupted&) {
        monitor.rethrow();
        throw;
    }
}

template <class Value>
Value named(const std::map<std::string, Value>& names, const std::string& name, const char* argument) {
    const auto found = names.find(name);
    if (found == names.end()) throw InvalidArgument(std::string(argument) + ": unknown name '" + name + "'");
    return found->second;
}

const std::map<std::string, Rule> kRules = {
    {"omp", Rule::omp}, {"normalized", Rule::normalized}, {"greedy", Rule::greedy}};

const std::map<std::string, Pick> kPicks = {{"argmax", Pick::argmax}, {"random", Pick::random}};

const std::map<std::string, Route> kRoutes = {{"auto", Route::automatic},
                                              {"plain", Route::plain},
                                              {"columns", Route::columns},
                                              {"draft", Route::draft},
                                              {"gram", Route::gram}};

const char* name_of(Route route) {
    for (const auto& [name, value] : kRoutes)
        if (value == route) return name.c_str();
    return "unknown";
}

const char* name_of(Status status) {
    switch (status) {
        case Status::budget:
            return "budget";
        case Status::tolerance:
            return "tolerance";
        case Status::no_gain:
            return "no_gain";
        case Status::rank_deficient:
            return "rank_deficient";
        case Status::exhausted:
            return "exhausted";
        case Status::stopped:
            return "stopped";
    }
    return "unknown";
}

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

Options options_of(const py::dict& given) {
    Options options;
    options.ridge = py::cast<double>(given["ridge"]);
    options.tilt = py::cast<double>(given["tilt"]);
    options.nonneg = py::cast<bool>(given["nonneg"]);
    if (!given.contains("rule")) return options;
    options.tol = py::cast<double>(given["tol"]);
    options.fill = py::cast<bool>(given["fill"]);
    options.release_zeros = py::cast<bool>(given["release_zeros"]);
    options.rule = named(kRules, py::cast<std::string>(given["rule"]), "rule");
    options.pick = named(kPicks, py::cast<std::string>(given["pick"]), "pick");
    options.route = named(kRoutes, py::cast<std::string>(given["route"]), "route");
    options.swap = !given["refine"].is_none();
    if (options.swap) {
        options.swap_tol = py::cast<double>(given["swap_tol"]);
        options.max_swaps = given["max_swaps"].is_none() ? -1 : py::cast<Index>(given["max_swaps"]);
    }
    if (options.pick == Pick::random) {
        options.seed = py::cast<std::uint64_t>(given["random_state"]);
        options.signed_ranking = py::cast<std::string>(given["ranking"]) == "signed";
    }
    return options;
}

py::dict to_dict(const Solution& solution) {
    py::dict out;
    out["indices"] = to_numpy(solution.indices);
    out["weights"] = to_numpy(solution.weights);
    out["gains"] = to_numpy(solution.gains);
    out["residual_norms"] = to_numpy(solution.residual_norms);
    out["objective"] = solution.objective;
    out["target_norm"] = solution.target_norm;
    out["status"] = name_of(solution.status);
    out["route"] = name_of(solution.route);
    out["n_filled"] = solution.n_filled;
    out["passes"] = solution.passes;
    out["bytes_read"] = solution.bytes_read;
    out["threads"] = solution.threads;
    out["seconds_prepare"] = solution.seconds_prepare;
    out["seconds_pursuit"] = solution.seconds_pursuit;
    out["seconds_swap"] = solution.seconds_swap;
    out["n_swaps"] = solution.n_swaps;
    out["swap_local_optimum"] = solution.swap_local_optimum;
    return out;
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
}
