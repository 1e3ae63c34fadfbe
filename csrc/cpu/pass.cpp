#include "cpu/pass.hpp"

namespace pysubmod::cpu {

void Pass::add_rows(std::span<const Index> rows) {
    for (const Index i : rows) wanted_[static_cast<std::size_t>(i)] = 1;
}

void Pass::screen(std::span<const double> x, double scale, float* out) {
    rows_.add_to(screen_, x, scale);
    screened_.push_back(out);
}

void Pass::screen(Index row, double scale, float* out) {
    rows_.add_row_to(screen_, row, scale);
    screened_.push_back(out);
}

void Pass::multiply(const double* x, double* out) {
    xs_.push_back(x);
    outs_.push_back(out);
}

void Pass::run() {
    std::vector<Index> rows;
    rows.reserve(wanted_.size());
    for (std::size_t i = 0; i < wanted_.size(); ++i)
        if (wanted_[i]) rows.push_back(static_cast<Index>(i));
    if (!screened_.empty()) rows_.screen(rows, rows, screen_, screened_);
    if (!xs_.empty()) rows_.multiply(rows, Rows::Factors{xs_, {}}, outs_, rows);
}

}  // namespace pysubmod::cpu
