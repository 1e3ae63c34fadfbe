#include "cpu/kernels.hpp"

#include <cstring>
#include <initializer_list>

namespace pysubmod::cpu {

const KernelSet& portable_kernels();
#if PYSUBMOD_X86
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
#endif

const KernelSet* kernel_set(const char* name) {
#if PYSUBMOD_X86
    if (std::strcmp(name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("f16c")
                   ? &avx512_kernels()
                   : nullptr;
    if (std::strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
                   ? &avx2_kernels()
                   : nullptr;
#endif
    return std::strcmp(name, "portable") == 0 ? &portable_kernels() : nullptr;
}

const KernelSet& kernel_set() {
    static const KernelSet& widest = []() -> const KernelSet& {
        for (const char* name : {"avx512", "avx2"})
            if (const KernelSet* set = kernel_set(name)) return *set;
        return portable_kernels();
    }();
    return widest;
}

}  // namespace pysubmod::cpu
