// Two doubles at a time: NEON on 64-bit Arm; on x86-64 for processors without FMA (before 2013), where std::fma is
// exact but slow.
#define PYSUBMOD_KERNELS portable_kernels
#define PYSUBMOD_KERNELS_NAME "portable"
#define PYSUBMOD_VECTOR 2
#include "cpu/kernels_impl.hpp"
