// What the tests compare with: dense linear algebra in long double, written without a look at the core.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace dense {

using Real = long double;
using Vector = std::vector<Real>;

// The same numbers on every machine.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t bits() {  // splitmix64
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        return z ^ (z >> 31);
    }
    double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    double uniform(double low, double high) { return low + (high - low) * uniform(); }
    double normal() { return std::sqrt(-2.0 * std::log1p(-uniform())) * std::cos(6.283185307179586 * uniform()); }
    std::size_t below(std::size_t n) { return static_cast<std::size_t>(bits() % n); }
    bool chance(double p) { return uniform() < p; }
    std::vector<double> normals(std::size_t n) {
        std::vector<double> x(n);
        for (double& value : x) value = normal();
        return x;
    }

  private:
    std::uint64_t state_;
};

struct Matrix {
    std::size_t rows, columns;
    Vector x;
    Matrix(std::size_t n, std::size_t m) : rows(n), columns(m), x(n * m, 0) {}
    Real& operator()(std::size_t i, std::size_t j) { return x[i * columns + j]; }
    Real operator()(std::size_t i, std::size_t j) const { return x[i * columns + j]; }
};

template <class A, class B>
Real inner(const A& a, const B& b) {
    Real sum = 0;
    for (std::size_t j = 0; j < a.size(); ++j) sum += static_cast<Real>(a[j]) * static_cast<Real>(b[j]);
    return sum;
}

// G G' + ridge I
inline Matrix gram(const std::vector<std::vector<double>>& rows, Real ridge = 0) {
    Matrix c(rows.size(), rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i)
        for (std::size_t j = 0; j < rows.size(); ++j) c(i, j) = inner(rows[i], rows[j]) + (i == j ? ridge : 0);
    return c;
}

inline Matrix part(const Matrix& c, const std::vector<std::size_t>& which) {
    Matrix out(which.size(), which.size());
    for (std::size_t a = 0; a < which.size(); ++a)
        for (std::size_t b = 0; b < which.size(); ++b) out(a, b) = c(which[a], which[b]);
    return out;
}

inline Vector part(const Vector& c, const std::vector<std::size_t>& which) {
    Vector out;
    for (const std::size_t i : which) out.push_back(c[i]);
    return out;
}

inline Vector multiply(const Matrix& a, const Vector& x) {
    Vector y(a.rows, 0);
    for (std::size_t i = 0; i < a.rows; ++i)
        for (std::size_t j = 0; j < a.columns; ++j) y[i] += a(i, j) * x[j];
    return y;
}

// C^-1 b for a symmetric positive definite C, by Gaussian elimination with partial pivoting after scaling to a unit
// diagonal; nothing where a pivot says that C is singular.
inline std::optional<Vector> solve(Matrix c, Vector b, Real smallest_pivot = 1e-13L) {
    const std::size_t n = b.size();
    Vector root(n);
    for (std::size_t i = 0; i < n; ++i) {
        root[i] = std::sqrt(c(i, i));
        if (!(root[i] > 0)) return std::nullopt;
    }
    for (std::size_t i = 0; i < n; ++i) {
        b[i] /= root[i];
        for (std::size_t j = 0; j < n; ++j) c(i, j) /= root[i] * root[j];
    }
    for (std::size_t k = 0; k < n; ++k) {
        std::size_t pivot = k;
        for (std::size_t i = k + 1; i < n; ++i)
            if (std::fabs(c(i, k)) > std::fabs(c(pivot, k))) pivot = i;
        if (!(std::fabs(c(pivot, k)) > smallest_pivot)) return std::nullopt;
        for (std::size_t j = 0; j < n; ++j) std::swap(c(k, j), c(pivot, j));
        std::swap(b[k], b[pivot]);
        for (std::size_t i = k + 1; i < n; ++i) {
            const Real factor = c(i, k) / c(k, k);
            for (std::size_t j = k; j < n; ++j) c(i, j) -= factor * c(k, j);
            b[i] -= factor * b[k];
        }
    }
    for (std::size_t k = n; k-- > 0;) {
        for (std::size_t j = k + 1; j < n; ++j) b[k] -= c(k, j) * b[j];
        b[k] /= c(k, k);
    }
    for (std::size_t i = 0; i < n; ++i) b[i] /= root[i];
    return b;
}

// <w, c> - 1/2 w' C w
inline Real objective(const Matrix& c, const Vector& linear, const Vector& w) {
    return inner(w, linear) - inner(w, multiply(c, w)) / 2;
}

struct Optimum {
    Real value = 0;
    Vector weights;
    bool unique = true;
};

// The best weights on at most 20 rows, w >= 0 or free, by trying every active set whose C is regular: some optimum
// lives on one of them.
inline Optimum optimum(const Matrix& c, const Vector& linear, bool nonneg) {
    const std::size_t k = linear.size();
    Optimum best{0, Vector(k, 0), true};
    std::vector<Optimum> all = {best};
    for (std::uint32_t set = 1; set < (1u << k); ++set) {
        std::vector<std::size_t> active;
        for (std::size_t i = 0; i < k; ++i)
            if (set >> i & 1) active.push_back(i);
        const auto w = solve(part(c, active), part(linear, active));
        if (!w) continue;
        bool feasible = true;
        for (const Real x : *w) feasible = feasible && (!nonneg || x >= 0);
        if (!feasible) continue;
        Optimum here{inner(*w, part(linear, active)) / 2, Vector(k, 0), true};
        for (std::size_t a = 0; a < active.size(); ++a) here.weights[active[a]] = (*w)[a];
        if (here.value > best.value) best = here;
        all.push_back(std::move(here));
    }
    for (const Optimum& other : all)
        for (std::size_t i = 0; i < k; ++i)
            if (other.value >= best.value * (1 - 1e-12L) &&
                std::fabs(other.weights[i] - best.weights[i]) > 1e-6L * std::fabs(best.weights[i]))
                best.unique = false;
    return best;
}

}  // namespace dense
