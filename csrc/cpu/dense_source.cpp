#include "cpu/dense_source.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "pysubmod/error.hpp"
#include "pysubmod/small_vector_ops.hpp"

namespace pysubmod::cpu {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

}  // namespace

FirstPass read_first(Rows& rows, std::span<const Index> pool, std::span<const double* const> targets) {
    FirstPass first;
    first.squares.resize(pool.size());
    first.products.assign(targets.size(), std::vector<double>(pool.size()));
    std::vector<const double*> xs(targets.begin(), targets.end());
    std::vector<double*> outs;
    for (std::vector<double>& products : first.products) outs.push_back(products.data());
    xs.push_back(nullptr);
    outs.push_back(first.squares.data());
    rows.multiply(pool, xs, outs);
    rows.check_squares(pool, first.squares);
    return first;
}

DenseSource::DenseSource(Rows& rows, std::span<const double> target, std::vector<Index> pool,
                         std::span<const double> squares, std::span<const double> products, const Options& options,
                         Route route)
    : rows_(rows),
      target_(target),
      target_norm_(std::sqrt(dot(target.data(), target.data(), target.size()))),
      ridge_(options.ridge),
      tilt_(options.tilt),
      greedy_(options.rule == Rule::greedy),
      pool_(std::move(pool)),
      residual_(target.begin(), target.end()),
      weight_of_(rows.size(), 0.0),
      square_(rows.size(), 0.0) {
    std::vector<double> c(rows.size(), 0.0), diagonal(rows.size(), 0.0);
    for (std::size_t j = 0; j < pool_.size(); ++j) {
        const std::size_t i = at(pool_[j]);
        square_[i] = squares[j];
        c[i] = products[j] + 0.5 * tilt_ * squares[j];
        diagonal[i] = squares[j] + ridge_;
        if (!std::isfinite(c[i]))
            throw InvalidArgument("tilt: too large for the norms of G; the linear term overflows");
    }
    scores_.reset(std::move(c), std::move(diagonal), target_norm_, options, rank_tolerance());
    if (route == Route::draft) draft_.emplace(rows_, scores_, target_, square_, pool_, options);
}

void DenseSource::gram_row(Index i, std::span<const Index> members, std::span<double> out) {
    const std::span<const double> drafted = draft_ ? draft_->gram_row(i, members) : std::span<const double>();
    if (drafted.empty())
        rows_.gram_row(i, members, out);
    else
        std::copy(drafted.begin(), drafted.end(), out.begin());
}

double DenseSource::schur_from_rows(Index i, std::span<const Index> members, std::span<const double> x) {
    rows_.widen(i, wide_row_);
    std::vector<double> rest(target_.size());
    rows_.subtract(wide_row_, members, x, rest);
    return dot(rest.data(), rest.data(), rest.size()) + ridge_ * (1.0 + dot(x.data(), x.data(), x.size()));
}

double DenseSource::set_weights(std::span<const Index> members, std::span<const double> weights, double scale) {
    for (const Index i : weighted_) weight_of_[at(i)] = 0.0;
    weighted_.clear();
    for (std::size_t m = 0; m < members.size(); ++m) {
        if (weights[m] == 0.0) continue;
        weight_of_[at(members[m])] = weights[m];
        weighted_.push_back(members[m]);
    }
    if (const Draft::Step* step = draft_ ? draft_->move_to(members, weights) : nullptr)
        residual_ = step->residual;
    else
        rows_.subtract(target_, members, weights, residual_);
    stale_ = true;
    scores_.weights_changed(scale);
    return std::sqrt(dot(residual_.data(), residual_.data(), residual_.size()));
}

void DenseSource::correlations(std::span<const Index> rows, std::span<double> out) {
    rows_.multiply(rows, residual_.data(), out);
    for (std::size_t j = 0; j < rows.size(); ++j)
        out[j] += 0.5 * tilt_ * square_[at(rows[j])] - ridge_ * weight_of_[at(rows[j])];
}

void DenseSource::read(const PartitionMatroid& matroid, const Refit& refit) {
    if (!draft_) return refresh(matroid);
    draft_->read(matroid, refit, residual_);
    ++passes_;
}

Best DenseSource::best(const PartitionMatroid& matroid, Ask ask) {
    if (ask == Ask::improving && is_stale() && draft_ && draft_->covers_present()) {
        const std::vector<Index> rows = draft_->contenders(matroid);
        std::vector<double> g(rows.size());
        correlations(rows, g);
        const Best best = scores_.best_of(rows, g);
        if (best.index >= 0) return best;
    }
    if (is_stale()) refresh(matroid);
    return scores_.best(matroid, ask);
}

Shortlist DenseSource::shortlist(const PartitionMatroid& matroid, Ask ask) {
    if (is_stale()) refresh(matroid);
    return scores_.shortlist(matroid, ask);
}

// One pass for all that is wanted: the correlations of the rows that may still be taken and, for greedy, the columns of
// K of the members that came since.
void DenseSource::refresh(const PartitionMatroid& matroid) {
    eligible_.clear();
    if (pending_.empty()) {
        for (Index i = 0; i < matroid.size(); ++i)
            if (matroid.may_take(i) && !scores_.is_selected(i)) eligible_.push_back(i);
    } else {
        eligible_ = pool_;
    }
    std::vector<const double*> xs = {residual_.data()};
    for (const PendingColumn& column : pending_) xs.push_back(column.row.data());
    std::vector<std::vector<double>> products(xs.size(), std::vector<double>(eligible_.size()));
    std::vector<double*> outs;
    for (std::vector<double>& product : products) outs.push_back(product.data());
    rows_.multiply(eligible_, xs, outs);
    ++passes_;
    const std::span<double> g = scores_.correlations();
    for (std::size_t j = 0; j < eligible_.size(); ++j) {
        const std::size_t i = at(eligible_[j]);
        g[i] = products[0][j] + 0.5 * tilt_ * square_[i] - ridge_ * weight_of_[i];
    }
    if (!pending_.empty()) apply_columns(eligible_, std::span(products).subspan(1));
    stale_ = false;
}

void DenseSource::restart() {
    residual_.assign(target_.begin(), target_.end());
    for (const Index i : weighted_) weight_of_[at(i)] = 0.0;
    weighted_.clear();
    pending_.clear();
    deflated_.clear();
    stale_ = false;
    scores_.restart();
    if (draft_) draft_->restart();
}

void DenseSource::columns(std::span<const Index> members, std::span<const Index> rows, std::span<double* const> outs) {
    rows_.multiply(rows, Rows::Factors{{}, members}, outs);
    ++passes_;
}

void DenseSource::deflate(Index i, std::span<const double> l, double l_end) {
    PendingColumn column{{}, {l.begin(), l.end()}, l_end};
    rows_.widen(i, column.row);
    pending_.push_back(std::move(column));
}

void DenseSource::apply_columns(std::span<const Index> rows, std::span<const std::vector<double>> columns) {
    for (std::size_t v = 0; v < columns.size(); ++v) {
        std::vector<double> column = columns[v];
        const PendingColumn& pending = pending_[v];
        for (std::size_t m = 0; m < pending.l.size(); ++m)
            for (std::size_t j = 0; j < rows.size(); ++j) column[j] -= pending.l[m] * deflated_[m][j];
        for (std::size_t j = 0; j < rows.size(); ++j) {
            column[j] /= pending.l_end;
            scores_.lower_schur(rows[j], column[j] * column[j]);
        }
        deflated_.push_back(std::move(column));
    }
    pending_.clear();
}

}  // namespace pysubmod::cpu
