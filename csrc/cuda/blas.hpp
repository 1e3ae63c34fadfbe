// Matrix products that a device may have besides our own kernels: cuBLAS, where there is one (cublas.hpp).
#pragma once

#include "pysubmod/types.hpp"

namespace pysubmod::cuda {

// `count` products A B' of the same shape, A (a_rows x columns) and B (b_rows x columns) in row order. The factors of
// product p begin p * step columns further right than those of product 0: pieces of one long product.
struct Products {
    Storage storage = Storage::float32;
    const void *a = nullptr, *b = nullptr;
    Index a_rows = 0, b_rows = 0, columns = 0;
    Index a_stride = 0, b_stride = 0;  // from a row to the next, in numbers
    Index step = 0;
    int count = 1;
    // (count, a_rows, b_rows): float64 where the factors are, else float32. Summed in the same type.
    void* out = nullptr;
};

class Blas {
  public:
    virtual ~Blas() = default;
    // Queued like a kernel. Every size and stride must fit an int.
    virtual void multiply(const Products& products) = 0;
    // Whether products in float64 run at a rate worth having. On many cards it is 1/32 or 1/64 of float32's.
    virtual bool has_fast_float64() const = 0;
};

}  // namespace pysubmod::cuda
