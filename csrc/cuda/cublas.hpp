// cuBLAS, found while the program runs: nothing here needs it to be built, or to be imported.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cuda/blas.hpp"

namespace pysubmod::cuda {

// A handle, borrowed for as long as this object lives, and bound to one stream.
//
// The same products give the same bits on the same card: one handle works for one stream at a time, in a workspace of
// its own (cuBLAS chooses how to multiply by the size of it). Another version of cuBLAS may give others.
class Cublas final : public Blas {
  public:
    // What NVIDIA recommends for sm_90; a smaller one makes products slower.
    static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

    // For the current device, whose index is given; nothing where there is no cuBLAS that works. The library is the
    // one that this process has already (torch and CuPy bring it), or else the one that the system finds: major
    // version 13 or 12.
    static std::unique_ptr<Cublas> find(int device, bool has_fast_float64);
    ~Cublas() override;
    Cublas(const Cublas&) = delete;
    Cublas& operator=(const Cublas&) = delete;

    // `stream` is a cudaStream_t; `workspace` is kWorkspaceBytes of device memory that nothing else uses meanwhile.
    void bind(void* stream, void* workspace);
    void multiply(const Products& products) override;
    bool has_fast_float64() const override { return has_fast_float64_; }
    std::string version() const;

  private:
    struct Library;
    static Library* library();
    Cublas(Library& library, int device, void* handle, bool has_fast_float64)
        : library_(library), device_(device), handle_(handle), has_fast_float64_(has_fast_float64) {}
    void check(int status, const char* call);

    Library& library_;
    int device_;
    void* handle_;
    bool has_fast_float64_;
    bool is_sound_ = true;  // after a failed call the handle is not lent out again
};

}  // namespace pysubmod::cuda
