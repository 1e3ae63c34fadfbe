// What every extension module shares: options and solutions as dicts, and the line from a solver back to Python.
#pragma once

#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <map>
#include <string>

#include "arrays.hpp"
#include "pysubmod/error.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod::bindings {

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

inline const std::map<std::string, Rule> kRules = {
    {"omp", Rule::omp}, {"normalized", Rule::normalized}, {"greedy", Rule::greedy}};

inline const std::map<std::string, Pick> kPicks = {{"argmax", Pick::argmax}, {"random", Pick::random}};

inline const std::map<std::string, Route> kRoutes = {{"auto", Route::automatic},
                                                     {"plain", Route::plain},
                                                     {"columns", Route::columns},
                                                     {"draft", Route::draft},
                                                     {"gram", Route::gram}};

inline const char* name_of(Route route) {
    for (const auto& [name, value] : kRoutes)
        if (value == route) return name.c_str();
    return "unknown";
}

inline const char* name_of(Status status) {
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

inline Options options_of(const py::dict& given) {
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

inline py::dict to_dict(const Solution& solution) {
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

}  // namespace pysubmod::bindings
