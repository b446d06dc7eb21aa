/* Many classes: vectors run along the class axis, blocks of PYCE_BLOCK classes.
 *
 * Each block has a normaliser of its own, so a block is read from memory once: its maximum first,
 * then, from the nearest cache, its exponentials. They are stored in scratch (in the compute type)
 * until the row's sum is known, and are then written, scaled. Row i − 1 is written while row i is
 * computed, so that stores and arithmetic overlap:
 *
 *     fused      reads each logit once, writes each gradient once
 *     forward    reads each logit once
 *     backward   from a saved lse: reads each logit once, writes each gradient once, stores a block;
 *                else as fused
 *
 * Above a share of the last cache (job->recompute) exponentials are not stored: fused reads each logit
 * twice.
 */

/* -- one row, or some of its blocks ---------------------------------------------------------------------- */

static void row_statistics(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                           pyce_block *blocks, void *scratch) {
    block_scratch *room = scratch;
    const pyce_operand *a = &job->p->logits;
    const element *x = (const element *)a->data + offset_of(a, row);
    const int64_t label = label_of(job->p, row);
    if (!is_valid(job->p, row)) return;
    next_block next = {0, 0, 0};
    unsummed before = {0};
    for (int64_t k = first; k < last; k++) {
        const int n = block_size(job, k);
        const int64_t at = block_begin(job, k), here = at - job->base;
        const element *block = gather(x + here * a->class_stride, a->class_stride, n, room->in);
        const real *b = job->soft ? soft_block(job, row, 0, here, n, room->b[0]) : (const real *)0;
        const real max = next.x == block ? next.max : block_max(block, n);
        next = block_after(job, block, n, k, last);
        block_statistics(job, block, at, n, max, index_within(label, at, n), b, room->e[0], 0,
                         blocks + k, 0, &next, &before);
    }
    sum_block(&before);
}

/* The row in the first lane of `s`, the others of which are clear. */
static void finalize_one(const pyce_job *job, int64_t row, row_state *s) {
    s->row = row;
    s->n = 1;
    finalize_rows(job, s, 1);
}

static void finalize_row(const pyce_job *job, int64_t row, pyce_block *blocks, row_state *s) {
    for (int i = 0; i < LANES; i++) clear_lane(i, s);
    if (is_valid(job->p, row)) combine_blocks(job, row, blocks, 0, s);
    finalize_one(job, row, s);
}

static void write_row(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                      const pyce_block *blocks, const void *state, void *scratch) {
    const row_state *s = state;
    block_scratch *room = scratch;
    const pyce_operand *a = &job->p->logits, *g = &job->p->result;
    const element *x = (const element *)a->data + offset_of(a, row);
    element *result = (element *)g->data + offset_of(g, row);
    const int gradient = job->p->operation <= PYCE_BACKWARD;
    const int valid = is_valid(job->p, row) && !(gradient && is_zero_row(job, s, 0));
    for (int64_t k = first; k < last; k++) {
        const int n = block_size(job, k);
        const int64_t at = block_begin(job, k), here = at - job->base;
        element *out = g->class_stride == 1 ? result + here : room->out;
        const element *block = x + here * a->class_stride;
        if (valid) block = gather(block, a->class_stride, n, room->in);
        if (!valid) {
            for (int c = 0; c < n; c++) out[c] = 0;
        } else if (job->p->operation == PYCE_LOG_SOFTMAX) {
            write_log_softmax(block, n, s, 0, out);
        } else {
            const real *b =
                job->soft ? soft_block(job, row, 0, here, n, room->b[0]) : (const real *)0;
            const normaliser norm = block_normaliser(blocks + k);
            next_block none = {0, 0, 0};
            unsummed nothing = {0};
            exp_block(block, n, &norm, room->e[0], 0, &none, &nothing);
            writer w = writer_of(job, s, 0, blocks + k, at, n, room->e[0], b, out);
            write_all(&w);
        }
        if (g->class_stride != 1) scatter(out, n, result + here * g->class_stride, g->class_stride);
    }
}

/* -- rows that threads share ------------------------------------------------------------------------ */

static void shared_statistics(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                              pyce_block *blocks, void *scratch) {
    if (lse_suffices(job, row)) {
        backward_blocks(job, row, first, last, blocks, scratch);
        if (job->streaming) memory_fence();
    } else {
        row_statistics(job, row, first, last, blocks, scratch);
    }
}

static void shared_finalize(const pyce_job *job, int64_t row, pyce_block *blocks, void *state,
                            double *losses, double *sums) {
    row_state *s = state;
    if (lse_suffices(job, row)) {
        backward_label(job, row, blocks);
        return;
    }
    finalize_row(job, row, blocks, s);
    losses[0] = s->loss[0];
    /* So many classes make tiles of one row. */
    reduce_tile(job, row, row + 1, losses, sums);
}

static void shared_write(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                         const pyce_block *blocks, const void *state, void *scratch) {
    if (lse_suffices(job, row)) return;
    write_row(job, row, first, last, blocks, state, scratch);
    if (job->streaming) memory_fence();
}

/* -- rows of one thread -------------------------------------------------------------------------- */

/* Classes of a row of exponentials in scratch: whole chunks, and one more. */
INLINE int64_t stored_classes(const pyce_job *job) {
    return (job->p->classes + 2 * CHUNK - 1) / CHUNK * CHUNK;
}

/* Whether each row is finished before the next: x itself is needed again, exponentials are not
   stored, or rows differ in how they are computed. */
INLINE int one_by_one(const pyce_job *job) {
    return job->recompute || job->p->operation == PYCE_LOG_SOFTMAX ||
           (LSE_SUFFICES && job->p->operation == PYCE_BACKWARD);
}

static size_t many_scratch(const pyce_job *job) {
    size_t bytes = sizeof(block_scratch) + 2 * (size_t)job->blocks * sizeof(pyce_block);
    if (pyce_has_result(job->p) && !one_by_one(job)) {
        bytes += (size_t)stored_classes(job) * sizeof(real);
    }
    return bytes + 256;
}

/* A row that is being computed, or was before and is to be written. */
typedef struct {
    int64_t row; /* −1 for none */
    real *e;
    pyce_block *blocks;
    row_state state;
} many_row;

/* Computes `now` while `before` is written (if the operation has a result), block by block. */
static void next_row(const pyce_job *job, many_row *now, many_row *before, block_scratch *room) {
    const pyce_problem *p = job->p;
    const pyce_operand *a = &p->logits, *g = &p->result;
    const int store = pyce_has_result(p);
    const int compute = now->row >= 0 && is_valid(p, now->row);
    int write = store && before->row >= 0;
    if (write && (!is_valid(p, before->row) || is_zero_row(job, &before->state, 0))) {
        zero_row(job, before->row);
        write = 0;
    }
    const element *x = 0;
    element *result = 0;
    int64_t label = -1;
    next_block next = {0, 0, 0};
    unsummed last = {0};
    if (compute) {
        x = (const element *)a->data + offset_of(a, now->row);
        label = label_of(p, now->row);
    }
    if (write) result = (element *)g->data + offset_of(g, before->row);
    for (int64_t k = 0; k < job->blocks; k++) {
        const int n = block_size(job, k);
        const int64_t at = k * PYCE_BLOCK;
        writer w, *writing = 0;
        if (write) {
            const real *b =
                job->soft ? soft_block(job, before->row, 0, at, n, room->b[1]) : (const real *)0;
            element *out = g->class_stride == 1 ? result + at : room->out;
            w = writer_of(job, &before->state, 0, before->blocks + k, at, n, before->e + at, b,
                          out);
            writing = &w;
        }
        if (compute) {
            const element *block = gather(x + at * a->class_stride, a->class_stride, n, room->in);
            const real *b =
                job->soft ? soft_block(job, now->row, 0, at, n, room->b[0]) : (const real *)0;
            real *e = store ? now->e + at : room->e[0];
            const real max = next.x == block ? next.max : block_max(block, n);
            next = block_after(job, block, n, k, job->blocks);
            block_statistics(job, block, at, n, max, index_within(label, at, n), b, e, store,
                             now->blocks + k, writing, &next, &last);
        } else if (writing) {
            write_all(writing);
        }
        if (write && g->class_stride != 1) {
            scatter(room->out, n, result + at * g->class_stride, g->class_stride);
        }
    }
    sum_block(&last);
    if (now->row >= 0) finalize_row(job, now->row, now->blocks, &now->state);
}

static void many_rows(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                      double *sums) {
    char *at = scratch;
    block_scratch *room = carve(&at, sizeof *room);
    const int store = pyce_has_result(job->p), single = one_by_one(job);
    double losses[PYCE_TILE];
    many_row rows[2];
    real *e = 0;
    if (store && !single) e = carve(&at, (size_t)stored_classes(job) * sizeof(real));
    for (int i = 0; i < 2; i++) {
        rows[i].row = -1;
        rows[i].blocks = carve(&at, (size_t)job->blocks * sizeof(pyce_block));
        rows[i].e = e; /* of both: each is written where the other was read just before */
    }
    int turn = 0;
    for (int64_t row = begin; row < end; row++) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        many_row *now = rows + turn, *before = rows + 1 - turn;
        losses[row - tile] = 0;
        if (lse_suffices(job, row)) {
            backward_blocks(job, row, 0, job->blocks, now->blocks, room);
            backward_label(job, row, now->blocks);
        } else if (single) {
            row_statistics(job, row, 0, job->blocks, now->blocks, room);
            finalize_row(job, row, now->blocks, &now->state);
            if (store) write_row(job, row, 0, job->blocks, now->blocks, &now->state, room);
            losses[row - tile] = now->state.loss[0];
        } else {
            now->row = row;
            next_row(job, now, before, room);
            losses[row - tile] = now->state.loss[0];
            turn = 1 - turn;
        }
        if (row + 1 == tile_end) reduce_tile(job, tile, tile_end, losses, sums);
    }
    many_row *now = rows + turn, *before = rows + 1 - turn;
    now->row = -1;
    if (store && before->row >= 0) next_row(job, now, before, room);
    if (job->streaming) memory_fence();
}
