/* The kernels for one target and one dtype of logits. An instance (csrc/kernels/instances) includes the
 * target's simd_*.h, its dtype_*.h, and this file; the order below is the order of dependence. */
#include "pairs.inc.h"       /* two-sum and numbers carried as pairs */
#include "vmath.inc.h"       /* normaliser, exponentials, log1p */
#include "sums.inc.h"        /* sums over classes and their errors */
#include "row_state.inc.h"   /* a row's statistics and how those of its blocks are combined */
#include "soft_target.inc.h" /* the factors b of the soft-target term */
#include "finalize.inc.h"    /* loss, lse and gradient factors from a row's statistics */
#include "writer.inc.h"      /* results along the class axis */
#include "block.inc.h"       /* statistics along the class axis */
#include "lane_block.inc.h"  /* the same with one row per lane */
#include "backward.inc.h"    /* the backward from a saved lse */
#include "many.inc.h"        /* drivers */
#include "medium.inc.h"
#include "few.inc.h"
#include "partial.inc.h" /* rows whose classes are cut into shards */
#include "scale.inc.h"   /* a saved gradient times a number */

enum { FEW, MEDIUM, MANY };
/* Which driver takes the rows of a job. */
INLINE int driver_of(const pyce_job *job) {
    if (job->p->inner > 1 || job->p->classes <= PYCE_FEW) return FEW;
    return job->blocks == 1 ? MEDIUM : MANY;
}

static void run_rows(const pyce_job *job, int64_t begin, int64_t end, void *scratch, double *sums) {
    switch (driver_of(job)) {
    case FEW: few_rows(job, begin, end, scratch, sums); break;
    case MEDIUM: medium_rows(job, begin, end, scratch, sums); break;
    default: many_rows(job, begin, end, scratch, sums);
    }
}

static size_t scratch_bytes(const pyce_job *job) {
    switch (driver_of(job)) {
    case FEW: return few_scratch(job);
    case MEDIUM: return medium_scratch(job);
    default: return many_scratch(job);
    }
}

#define INSTANCE3(target, dtype) pyce_rows_##target##_##dtype
#define INSTANCE2(target, dtype) INSTANCE3(target, dtype)
#define INSTANCE INSTANCE2(TARGET, DTYPE)

#if defined(TARGET_END)
TARGET_END
#endif

const pyce_row_kernels INSTANCE = {
    .run = run_rows,
    .scratch = scratch_bytes,
    .statistics = shared_statistics,
    .finalize = shared_finalize,
    .write = shared_write,
    .partial = partial_rows,
    .complete = complete_rows,
    .shard_scratch = shard_scratch,
    .pack = pack_row,
    .combine = shared_combine,
    .scale = scale_saved,
};
