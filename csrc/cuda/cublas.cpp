#include "cuda/cublas.hpp"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace pysubmod::cuda {
namespace {

// Names and values of cublas_api.h and library_types.h, which are the same in cuBLAS 12 and 13.
constexpr int kSuccess = 0;                      // CUBLAS_STATUS_SUCCESS
constexpr int kPlain = 0, kTransposed = 1;       // CUBLAS_OP_N, CUBLAS_OP_T
constexpr int kFloat32 = 0, kFloat64 = 1;        // CUDA_R_32F, CUDA_R_64F
constexpr int kFloat16 = 2, kBfloat16 = 14;      // CUDA_R_16F, CUDA_R_16BF
constexpr int kInFloat32 = 68, kInFloat64 = 70;  // CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F
constexpr int kAnyAlgorithm = -1;                // CUBLAS_GEMM_DEFAULT
// CUBLAS_DEFAULT_MATH, in which float32 is never rounded to TF32, and
// CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: parts of a sum are not put together in half precision.
constexpr int kExactMath = 0 | 16;

int type_of(Storage storage) {
    switch (storage) {
        case Storage::float16:
            return kFloat16;
        case Storage::bfloat16:
            return kBfloat16;
        case Storage::float32:
            return kFloat32;
        default:
            return kFloat64;
    }
}

template <class Function>
bool resolve(void* library, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    return function != nullptr;
}

// Never closed: a library that has used CUDA does not bear being unloaded.
void* open_library() {
    for (const int flags : {RTLD_NOLOAD, 0})
        for (const char* name : {"libcublas.so.13", "libcublas.so.12"})
            if (void* library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | flags)) return library;
    return nullptr;
}

}  // namespace

struct Cublas::Library {
    int (*create)(void** handle);
    int (*destroy)(void* handle);
    int (*get_version)(void* handle, int* version);
    int (*set_stream)(void* handle, void* stream);
    int (*set_workspace)(void* handle, void* workspace, std::size_t bytes);
    int (*set_math_mode)(void* handle, int mode);
    const char* (*status_name)(int status);
    int (*multiply)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                    const void* a, int a_type, int a_stride, long long a_step, const void* b, int b_type, int b_stride,
                    long long b_step, const void* beta, void* c, int c_type, int c_stride, long long c_step, int count,
                    int compute_type, int algorithm);
    std::mutex mutex;
    std::map<int, std::vector<void*>> idle;  // handles by device

    bool load(void* from) {
        return resolve(from, "cublasCreate_v2", create) && resolve(from, "cublasDestroy_v2", destroy) &&
               resolve(from, "cublasGetVersion_v2", get_version) && resolve(from, "cublasSetStream_v2", set_stream) &&
               resolve(from, "cublasSetWorkspace_v2", set_workspace) &&
               resolve(from, "cublasSetMathMode", set_math_mode) && resolve(from, "cublasGetStatusName", status_name) &&
               resolve(from, "cublasGemmStridedBatchedEx", multiply);
    }
};

// Handles stay: to make one takes longer than many a solve, and to destroy one waits for the whole device, which a
// solve that leaves its results on the device must not do. They hold no numbers and no settings that outlive a solve.
// Never destroyed, since CUDA may be gone before this module is.
Cublas::Library* Cublas::library() {
    struct Slot {
        std::mutex mutex;
        Library* library = nullptr;
    };
    static Slot& slot = *new Slot;
    const std::lock_guard lock(slot.mutex);
    if (!slot.library)  // looked for again each time: torch may have been imported since
        if (void* found = open_library()) {
            auto library = std::make_unique<Library>();
            if (library->load(found)) slot.library = library.release();
        }
    return slot.library;
}

std::unique_ptr<Cublas> Cublas::find(int device, bool has_fast_float64) {
    Library* library = Cublas::library();
    if (!library) return nullptr;
    void* handle = nullptr;
    {
        const std::lock_guard lock(library->mutex);
        std::vector<void*>& idle = library->idle[device];
        if (!idle.empty()) {
            handle = idle.back();
            idle.pop_back();
        }
    }
    if (!handle && library->create(&handle) != kSuccess) return nullptr;  // too new for the driver, or no memory
    return std::unique_ptr<Cublas>(new Cublas(*library, device, handle, has_fast_float64));
}

Cublas::~Cublas() {
    if (!is_sound_) {
        library_.destroy(handle_);
        return;
    }
    try {
        const std::lock_guard lock(library_.mutex);
        library_.idle[device_].push_back(handle_);
    } catch (...) {  // no memory for the list: the handle is lost, nothing else
    }
}

void Cublas::check(int status, const char* call) {
    if (status == kSuccess) return;
    is_sound_ = false;
    throw std::runtime_error("cuBLAS " + version() + ": " + call + " failed: " + library_.status_name(status));
}

void Cublas::bind(void* stream, void* workspace) {
    check(library_.set_stream(handle_, stream), "cublasSetStream");
    check(library_.set_workspace(handle_, workspace, kWorkspaceBytes),
          "cublasSetWorkspace");  // setting a stream undoes it
    check(library_.set_math_mode(handle_, kExactMath), "cublasSetMathMode");
}

// alpha and beta are numbers of the host, which is how a handle is made (CUBLAS_POINTER_MODE_HOST).
// cuBLAS counts columns first, so that what it takes for C is our C transposed, B A' in rows: it reads the rows of B
// and of A as columns.
void Cublas::multiply(const Products& p) {
    const bool wide = p.storage == Storage::float64;
    const double one64 = 1.0, zero64 = 0.0;
    const float one32 = 1.0f, zero32 = 0.0f;
    const void *one = &one32, *zero = &zero32;
    if (wide) one = &one64, zero = &zero64;
    const int type = type_of(p.storage);
    const auto m = static_cast<int>(p.b_rows), n = static_cast<int>(p.a_rows), k = static_cast<int>(p.columns);
    check(library_.multiply(handle_, kTransposed, kPlain, m, n, k, one, p.b, type, static_cast<int>(p.b_stride), p.step,
                            p.a, type, static_cast<int>(p.a_stride), p.step, zero, p.out, wide ? kFloat64 : kFloat32, m,
                            static_cast<long long>(m) * n, p.count, wide ? kInFloat64 : kInFloat32, kAnyAlgorithm),
          "cublasGemmStridedBatchedEx");
}

std::string Cublas::version() const {
    int version = 0;
    if (library_.get_version(handle_, &version) != kSuccess) return "of an unknown version";
    return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
           std::to_string(version % 100);
}

}  // namespace pysubmod::cuda
