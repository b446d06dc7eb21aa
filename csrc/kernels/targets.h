/* The instruction sets ("targets") that this build has kernels for, widest first. Dispatch and tests
 * read this list; csrc/build_ffi.py compiles every file of instances/.
 *
 * A target NAME consists of
 *     simd_NAME.h                     its vector operations, its public name, and whether this
 *                                     machine supports it
 *     instances/NAME.c                what does not depend on the dtype of the logits
 *     instances/NAME_{f32,f64,f16,bf16}.c     the kernels for each dtype
 */
#ifndef PYCE_TARGETS_H
#define PYCE_TARGETS_H

#if defined(__x86_64__)
#define PYCE_TARGETS(X) X(avx512) X(avx2) X(plain_fma) X(plain)
#elif defined(__AARCH64EL__)
#define PYCE_TARGETS(X) X(neon) X(plain)
#else
#define PYCE_TARGETS(X) X(plain)
#endif

#endif
