/* The kernels of a target that no dtype has of its own, and the table of all its kernels. */
#include "real_f64.h"

#include "pairs.inc.h"
#include "vmath.inc.h"
#include "sums.inc.h"
#include "elementwise.inc.h"
#include "selective.inc.h"

#if defined(TARGET_END)
TARGET_END
#endif

static int supported(void) { return TARGET_SUPPORTED; }

#define ROWS2(target, dtype) &pyce_rows_##target##_##dtype
#define ROWS(target, dtype) ROWS2(target, dtype)
#define KERNELS2(target) pyce_kernels_##target
#define KERNELS(target) KERNELS2(target)

const pyce_kernels KERNELS(TARGET) = {
    .name = TARGET_NAME,
    .supported = supported,
    .rows = {[PYCE_FLOAT32] = ROWS(TARGET, f32),
             [PYCE_FLOAT64] = ROWS(TARGET, f64),
             [PYCE_FLOAT16] = ROWS(TARGET, f16),
             [PYCE_BFLOAT16] = ROWS(TARGET, bf16)},
    .labels = {labels32, labels64},
    .bernoulli = {[PYCE_FLOAT32] = bernoulli_f32, [PYCE_FLOAT64] = bernoulli_f64},
    .copy = stream_copy,
    .read = read_lines,
    .selective_quotients = selective_quotients,
    .selective_sums = selective_sums,
};
