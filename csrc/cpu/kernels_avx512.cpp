// Compiled with -mavx512{f,bw,vl,dq} -mfma -mf16c.
#define PYSUBMOD_KERNELS avx512_kernels
#define PYSUBMOD_KERNELS_NAME "avx512"
#define PYSUBMOD_VECTOR 8
#include "cpu/kernels_impl.hpp"
