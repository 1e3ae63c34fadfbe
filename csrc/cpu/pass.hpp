// One reading of the rows for everybody who asks something of it.
#pragma once

#include <span>
#include <vector>

#include "cpu/rows.hpp"

namespace pysubmod::cpu {

class Pass {
  public:
    explicit Pass(Rows& rows) : rows_(rows), wanted_(rows.size(), 0) {}

    void add_rows(std::span<const Index> rows);
    // out[i] = <row i, scale x> for every row i that anybody added, in float32 (Rows::screen), x being a vector or a
    // row; out has the size of all rows.
    void screen(std::span<const double> x, double scale, float* out);
    void screen(Index row, double scale, float* out);
    // out[i] = <row i, x> in float64; x is looked at when the pass is made.
    void multiply(const double* x, double* out);

    void run();

  private:
    Rows& rows_;
    std::vector<char> wanted_;
    Rows::Screen screen_;
    std::vector<float*> screened_;
    std::vector<const double*> xs_;
    std::vector<double*> outs_;
};

}  // namespace pysubmod::cpu
