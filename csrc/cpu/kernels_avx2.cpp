// Compiled with -mavx2 -mfma -mf16c.
#define PYSUBMOD_KERNELS avx2_kernels
#define PYSUBMOD_KERNELS_NAME "avx2"
#define PYSUBMOD_VECTOR 4
#include "cpu/kernels_impl.hpp"
