#include "cpu/dense_source.hpp"

#include <algorithm>
#include <cmath>

#include "pysubmod/error.hpp"
#include "pysubmod/small_vector_ops.hpp"

namespace pysubmod::cpu {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

}  // namespace

FirstPass read_first(Rows& rows, std::span<const Index> pool, std::span<const std::span<const double>> targets) {
    FirstPass first;
    first.squares.resize(pool.size());
    first.products.assign(targets.size(), std::vector<double>(pool.size()));
    std::vector<const double*> xs;
    for (const std::span<const double> target : targets) xs.push_back(target.data());
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
                         Reading reading)
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
    if (reading.route == Route::draft)
        draft_.emplace(rows_, scores_, target_, square_, pool_, options, reading.n_sharing);
    if (reading.route == Route::columns)
        cache_.emplace(rows_, *reading.store, scores_, products, target_norm_, square_, pool_, options,
                       reading.n_sharing);
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
    if (cache_) cache_->set_weights(members, weights);
    stale_ = true;
    scores_.weights_changed(scale);
    return std::sqrt(dot(residual_.data(), residual_.data(), residual_.size()));
}

void DenseSource::correlations(std::span<const Index> rows, std::span<double> out) {
    rows_.multiply(rows, residual_.data(), out);
    for (std::size_t j = 0; j < rows.size(); ++j)
        out[j] += 0.5 * tilt_ * square_[at(rows[j])] - ridge_ * weight_of_[at(rows[j])];
}

void DenseSource::plan(Pass& pass, const PartitionMatroid& matroid, const Refit& refit) {
    planned_all_ = (!draft_ && !cache_) || n_plain_ > 0;
    if (planned_all_) return plan_all(pass, matroid);
    if (draft_)
        draft_->plan(pass, matroid, refit, residual_);
    else
        cache_->plan(pass, matroid, residual_);
    plan_columns(pass);
    ++passes_;
}

void DenseSource::finish() {
    if (planned_all_) {
        n_plain_ = std::max<Index>(0, n_plain_ - 1);
        return finish_all();
    }
    if (draft_)
        draft_->finish();
    else
        cache_->finish();
    finish_columns();
}

void DenseSource::read(const PartitionMatroid& matroid, const Refit& refit) {
    Pass pass(rows_);
    plan(pass, matroid, refit);
    pass.run();
    finish();
}

Best DenseSource::best(const PartitionMatroid& matroid, Ask ask) {
    if (is_stale() && is_screened()) {
        if (greedy_) {
            set_correlations(draft_->present().products, pool_);
        } else if (ask == Ask::improving) {
            const Best best = screened_best(matroid);
            if (best.index >= 0) return best;
        }
    }
    if (is_stale()) refresh(matroid);
    return scores_.best(matroid, ask);
}

// Where screening cannot tell, which costs a pass, it is left alone for a while, the longer the more often.
Best DenseSource::screened_best(const PartitionMatroid& matroid) {
    const std::vector<Index> rows = draft_ ? draft_->contenders(matroid) : cache_->contenders(matroid);
    std::vector<double> g(rows.size());
    correlations(rows, g);
    const Best best = scores_.best_of(rows, g);
    constexpr Index kLeast = 2, kMost = 64;
    if (best.index < 0) n_plain_ = n_plain_next_;
    n_plain_next_ = best.index < 0 ? std::min(2 * n_plain_next_, kMost) : std::max(n_plain_next_ / 2, kLeast);
    return best;
}

Shortlist DenseSource::shortlist(const PartitionMatroid& matroid, Ask ask) {
    if (is_stale()) refresh(matroid);
    return scores_.shortlist(matroid, ask);
}

void DenseSource::refresh(const PartitionMatroid& matroid) {
    Pass pass(rows_);
    plan_all(pass, matroid);
    pass.run();
    finish_all();
}

// In float64 the correlations of the rows that may still be taken and, for greedy, the columns of K of the members that
// came since.
void DenseSource::plan_all(Pass& pass, const PartitionMatroid& matroid) {
    eligible_.clear();
    for (const Index i : pool_)
        if (matroid.may_take(i) && !scores_.is_selected(i)) eligible_.push_back(i);
    products_.resize(rows_.size());
    pass.add_rows(eligible_);
    pass.multiply(residual_.data(), products_.data());
    plan_columns(pass);
    ++passes_;
}

void DenseSource::finish_all() {
    set_correlations(products_, eligible_);
    finish_columns();
}

void DenseSource::set_correlations(const std::vector<double>& products, std::span<const Index> rows) {
    const std::span<double> g = scores_.correlations();
    for (const Index row : rows) {
        const std::size_t i = at(row);
        g[i] = products[i] + 0.5 * tilt_ * square_[i] - ridge_ * weight_of_[i];
    }
    stale_ = false;
}

void DenseSource::plan_columns(Pass& pass) {
    if (!pending_.empty()) pass.add_rows(pool_);
    for (PendingColumn& column : pending_) {
        column.products.resize(rows_.size());
        pass.multiply(column.row.data(), column.products.data());
    }
}

void DenseSource::finish_columns() {
    for (const PendingColumn& column : pending_) apply_column(column.products, column.l, column.l_end);
    pending_.clear();
}

void DenseSource::restart() {
    residual_.assign(target_.begin(), target_.end());
    for (const Index i : weighted_) weight_of_[at(i)] = 0.0;
    weighted_.clear();
    pending_.clear();
    deflated_.clear();
    stale_ = false;
    scores_.restart();
    n_plain_ = 0;
    if (draft_) draft_->restart();
    if (cache_) cache_->restart();
}

void DenseSource::columns(std::span<const Index> members, std::span<const Index> rows, std::span<double* const> outs) {
    rows_.multiply(rows, Rows::Factors{{}, members}, outs);
    ++passes_;
}

void DenseSource::deflate(Index i, std::span<const double> l, double l_end) {
    const std::span<const double> drafted = draft_ ? draft_->column(i) : std::span<const double>();
    if (!drafted.empty()) return apply_column(drafted, l, l_end);
    PendingColumn column{{}, {l.begin(), l.end()}, l_end, {}};
    rows_.widen(i, column.row);
    pending_.push_back(std::move(column));
}

// From row i of K, the Schur complements of all rows given one member more.
void DenseSource::apply_column(std::span<const double> products, std::span<const double> l, double l_end) {
    std::vector<double> column(pool_.size());
    for (std::size_t j = 0; j < column.size(); ++j) column[j] = products[at(pool_[j])];
    for (std::size_t m = 0; m < l.size(); ++m)
        for (std::size_t j = 0; j < column.size(); ++j) column[j] -= l[m] * deflated_[m][j];
    for (std::size_t j = 0; j < column.size(); ++j) {
        column[j] /= l_end;
        scores_.lower_schur(pool_[j], column[j] * column[j]);
    }
    deflated_.push_back(std::move(column));
}

}  // namespace pysubmod::cpu
