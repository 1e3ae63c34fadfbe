#include "cpu/formed_gram.hpp"

#include <algorithm>

namespace pysubmod::cpu {

// A block of columns at a time, from its diagonal down.
FormedGram::FormedGram(Rows& rows, std::span<const Index> pool)
    : n_(pool.size()), place_(rows.size(), -1), entries_(n_ * n_) {
    constexpr std::size_t kColumns = 64;
    for (std::size_t j = 0; j < n_; ++j) place_[static_cast<std::size_t>(pool[j])] = static_cast<Index>(j);
    for (std::size_t begin = 0; begin < n_; begin += kColumns) {
        const std::size_t count = std::min(kColumns, n_ - begin);
        std::vector<double*> outs;
        for (std::size_t v = begin; v < begin + count; ++v) outs.push_back(entries_.data() + v * n_ + begin);
        const std::span<const Index> rest = pool.subspan(begin);
        rows.multiply(rest, Rows::Factors{{}, rest.first(count)}, outs);
        for (std::size_t v = begin; v < begin + count; ++v)
            for (std::size_t j = v + 1; j < n_; ++j) entries_[j * n_ + v] = entries_[v * n_ + j];
    }
}

}  // namespace pysubmod::cpu
