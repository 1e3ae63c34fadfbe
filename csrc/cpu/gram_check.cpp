#include "cpu/gram_check.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace pysubmod::cpu {
namespace {

// What lies above the diagonal is compared with what lies below it, tile by tile, since one of them is read by columns.
template <class Number>
class Checker {
  public:
    Checker(const RowBlock& gram, double tolerance) : gram_(gram), tolerance_(tolerance) {}

    std::optional<std::pair<Index, Index>> first_fault() const {
        constexpr Index kTile = 16;
        bool any = false;
        for (Index row = 0; row < gram_.rows && !any; row += kTile)
            for (Index column = row; column < gram_.rows && !any; column += kTile)
                any = has_fault(row, std::min(row + kTile, gram_.rows), column, std::min(column + kTile, gram_.rows));
        if (!any) return std::nullopt;
        for (Index i = 0;; ++i)
            for (Index j = i; j < gram_.rows; ++j)
                if (is_fault(i, j)) return std::pair(i, j);
    }

  private:
    bool has_fault(Index row, Index row_end, Index column, Index column_end) const {
        for (Index i = row; i < row_end; ++i) {
            const std::byte* across = address(i, column);
            const std::byte* down = address(column, i);
            for (Index j = column; j < column_end; ++j, across += sizeof(Number), down += gram_.row_stride)
                // also NaN, and infinity less infinity
                if (!(read(across) - read(down) == Number(0)) && is_fault(i, j)) return true;
        }
        return false;
    }
    bool is_fault(Index i, Index j) const {
        const double x = read(address(i, j)), y = read(address(j, i));
        if (!std::isfinite(x) || !std::isfinite(y)) return true;
        return std::abs(x - y) > tolerance_ * (root(i) * root(j));
    }
    double root(Index i) const { return std::sqrt(std::abs(static_cast<double>(read(address(i, i))))); }
    const std::byte* address(Index i, Index j) const {
        return gram_.data + i * gram_.row_stride + j * static_cast<Index>(sizeof(Number));
    }
    static Number read(const std::byte* from) {
        Number x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }

    const RowBlock& gram_;
    double tolerance_;
};

}  // namespace

std::optional<std::pair<Index, Index>> gram_fault(const RowBlock& gram, double tolerance) {
    if (gram.storage == Storage::float64) return Checker<double>(gram, tolerance).first_fault();
    return Checker<float>(gram, tolerance).first_fault();
}

}  // namespace pysubmod::cpu
