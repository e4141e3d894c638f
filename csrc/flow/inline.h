// How the shared formulas are compiled: for the device under nvcc, for the host elsewhere.
#pragma once

#if defined(__CUDACC__)
#define FK_INLINE __device__ __forceinline__
#elif defined(__GNUC__)
#define FK_INLINE inline __attribute__((always_inline))
#else
#define FK_INLINE inline
#endif
