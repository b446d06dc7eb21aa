/* Rows whose classes are cut into shards, each of which another process may hold.
 *
 * Each shard is cut into blocks of PYCE_BLOCK classes from its own first class on. A row's state
 * after the classes of a shard is the statistics of its blocks (pyce_state_head,
 * pyce_block_numbers). The states of all shards, in the order of the classes, are those of the
 * row's blocks, which are combined and written as the blocks of any other row are. So where all
 * shards begin at multiples of PYCE_BLOCK, the row has the same bytes as in one piece. Elsewhere
 * its sum has another order, with the same error bound.
 *
 *     partial     reads each logit of the shard once
 *     complete    reads each logit of the shard once and writes each gradient once
 *
 * Logits, result and probs begin with the class job->base, the first of the shard.
 */

static size_t shard_scratch(const pyce_job *job) {
    return sizeof(block_scratch) + (size_t)job->blocks * sizeof(pyce_block) + 256;
}

INLINE int64_t shard_begin(const pyce_job *job, int s) { return job->shards->bounds[s]; }
INLINE int64_t blocks_of_shard(const pyce_job *job, int s) {
    return pyce_blocks_of(shard_begin(job, s + 1) - shard_begin(job, s));
}
/* The numbers of a row in the state of a shard with so many blocks. */
INLINE int64_t row_numbers(const pyce_problem *p, int64_t blocks) {
    return pyce_state_head(p) + blocks * pyce_block_numbers(p);
}
INLINE int is_class_of(const pyce_job *job, int s, int64_t label) {
    return label >= shard_begin(job, s) && label < shard_begin(job, s + 1);
}

/* -- states ------------------------------------------------------------------------------------------- */

static double *pack_block(const pyce_job *job, int64_t row, int64_t k, const pyce_block *block,
                          double *to) {
    *to++ = block->max;
    *to++ = block->sum;
    if (COMPENSATED) *to++ = block->sum_error;
    if (job->soft) {
        *to++ = block->soft_sum;
        *to++ = block->soft_sum_error;
        *to++ = block->soft_loss;
        *to++ = block->soft_loss_error;
    }
    if (job->soft == SOFT_PROBS) {
        real b = 0;
        *to++ = (double)block->pivot;
        *to++ =
            block->pivot < 0
                ? 0
                : *soft_block(job, row, 0, block_begin(job, k) - job->base + block->pivot, 1, &b);
    }
    return to;
}

static const double *unpack_block(const pyce_job *job, const double *from, pyce_block *block,
                                  double *pivot_b) {
    *block = (pyce_block){.pivot = -1};
    block->max = *from++;
    block->sum = *from++;
    if (COMPENSATED) block->sum_error = *from++;
    if (job->soft) {
        block->soft_sum = *from++;
        block->soft_sum_error = *from++;
        block->soft_loss = *from++;
        block->soft_loss_error = *from++;
    }
    *pivot_b = 0;
    if (job->soft == SOFT_PROBS) {
        /* The states of other processes may be any numbers. */
        const double pivot = *from++;
        block->pivot = pivot >= 0 && pivot < PYCE_BLOCK ? (int64_t)pivot : -1;
        *pivot_b = *from++;
    }
    return from;
}

/* The state of a row from the statistics of the shard's blocks; zeros for a row that is ignored. */
static void pack_row(const pyce_job *job, int64_t row, const pyce_block *blocks) {
    const pyce_problem *p = job->p;
    const int64_t numbers = row_numbers(p, job->last - job->first);
    double *to = job->state + row * numbers;
    if (!is_valid(p, row)) {
        for (int64_t i = 0; i < numbers; i++) to[i] = 0;
        return;
    }
    if (p->labels) {
        const int64_t label = label_of(p, row), here = label - job->base;
        const int own = is_class_of(job, job->shards->own, label);
        *to++ = own ? (double)m_get(logits_of(p, row) + here * p->logits.class_stride) : 0;
    }
    for (int64_t k = job->first; k < job->last; k++) to = pack_block(job, row, k, blocks + k, to);
}

/* The statistics of a row, in the first lane of `s`, from its states. */
static void combine_states(const pyce_job *job, int64_t row, pyce_block *blocks, row_state *s) {
    const pyce_problem *p = job->p;
    const int64_t label = label_of(p, row);
    double label_x = -INFINITE, max = -INFINITE, pivot_b = 0;
    pyce_block *block = blocks;
    for (int i = 0; i < job->shards->count; i++) {
        const int64_t count = blocks_of_shard(job, i);
        const double *from = job->states[i] + row * row_numbers(p, count);
        if (p->labels) {
            if (is_class_of(job, i, label)) label_x = *from;
            from++;
        }
        for (pyce_block *end = block + count; block < end; block++) {
            double b;
            from = unpack_block(job, from, block, &b);
            if (block->max > max) {
                max = block->max;
                pivot_b = b;
            }
        }
    }
    combine_statistics(job, row, blocks, 0, s);
    /* Without labels, the pivot is a class of the maximum. */
    s->label_x[0] = label_x;
    s->pivot_x[0] = job->pivot == PIVOT_LABEL ? label_x : s->pivot[0] < 0 ? -INFINITE : max;
    s->label_b[0] = job->soft && p->labels;
    s->pivot_b[0] = p->labels ? s->label_b[0] : pivot_b;
}

static void finalize_states(const pyce_job *job, int64_t row, pyce_block *blocks, row_state *s) {
    for (int i = 0; i < LANES; i++) clear_lane(i, s);
    if (is_valid(job->p, row)) combine_states(job, row, blocks, s);
    finalize_one(job, row, s);
}

/* -- rows ------------------------------------------------------------------------------------------------ */

static void partial_rows(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                         double *sums) {
    char *at = scratch;
    block_scratch *room = carve(&at, sizeof *room);
    pyce_block *blocks = carve(&at, (size_t)job->blocks * sizeof(pyce_block));
    (void)sums;
    for (int64_t row = begin; row < end; row++) {
        /* A shard without classes has no logits. */
        if (job->first < job->last) {
            row_statistics(job, row, job->first, job->last, blocks, room);
        }
        pack_row(job, row, blocks);
    }
}

static void complete_rows(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                          double *sums) {
    char *at = scratch;
    block_scratch *room = carve(&at, sizeof *room);
    pyce_block *blocks = carve(&at, (size_t)job->blocks * sizeof(pyce_block));
    double losses[PYCE_TILE];
    row_state s;
    for (int64_t row = begin; row < end; row++) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        finalize_states(job, row, blocks, &s);
        losses[row - tile] = s.loss[0];
        if (pyce_has_result(job->p)) {
            write_row(job, row, job->first, job->last, blocks, &s, room);
        }
        if (row + 1 == tile_end) reduce_tile(job, tile, tile_end, losses, sums);
    }
    if (job->streaming) memory_fence();
}

/* A row that threads share: its blocks exceed one, and so its tile is one row. */
static void shared_combine(const pyce_job *job, int64_t row, pyce_block *blocks, void *state,
                           double *losses, double *sums) {
    row_state *s = state;
    finalize_states(job, row, blocks, s);
    losses[0] = s->loss[0];
    reduce_tile(job, row, row + 1, losses, sums);
}
