// A BLAS for the tests of what uses one, and a device that has it.
#pragma once

#include "cuda/blas.hpp"
#include "cuda/host_device.hpp"
#include "cuda/numbers.hpp"

namespace pysubmod::cuda {

// What cuBLAS does, one number after another.
class PlainBlas : public Blas {
  public:
    explicit PlainBlas(bool fast) : fast_(fast) {}
    bool has_fast_float64() const override { return fast_; }
    void multiply(const Products& p) override {
        p.storage == Storage::float64 ? run<double>(p) : run<float>(p);
        ++calls;
    }
    int calls = 0;

  private:
    template <class Number>
    static void run(const Products& p) {
        auto* out = static_cast<Number*>(p.out);
        for (int product = 0; product < p.count; ++product)
            for (Index i = 0; i < p.a_rows; ++i)
                for (Index j = 0; j < p.b_rows; ++j) {
                    Number sum = 0;
                    for (Index c = product * p.step; c < product * p.step + p.columns; ++c)
                        sum += static_cast<Number>(load(p.a, p.storage, i * p.a_stride + c) *
                                                   load(p.b, p.storage, j * p.b_stride + c));
                    *out++ = sum;
                }
    }
    bool fast_;
};

struct DeviceWithBlas : HostDevice {
    explicit DeviceWithBlas(PlainBlas& with) : HostDevice(2), blas_(&with) {}
    Blas* blas() { return blas_; }
    PlainBlas* blas_;
};

}  // namespace pysubmod::cuda
