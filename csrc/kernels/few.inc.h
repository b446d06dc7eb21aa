/* Few classes, or a class axis that is not the last: one row per lane (lane_block.inc.h).
 *
 *     fused, forward, backward    read each logit once, write each gradient once
 *                                 (above PYCE_BLOCK classes: read twice, nothing is stored)
 */

/* Lane blocks that are worked on together, so that there are enough rows to finalize; and the numbers
   of a vector's width that they hold, which stay in the nearest cache. */
#define BATCH 8
#define BATCH_CLASSES 512
/* How far ahead rows that lie one after the other are prefetched, in bytes: farther than a processor
   does by itself while it computes. */
#define FEW_AHEAD 8192

/* Whether rows of one block are worked on in batches: all but those whose backward may be from the
   lse. */
INLINE int in_batches(const pyce_job *job) {
    const int from_lse = LSE_SUFFICES && job->p->operation == PYCE_BACKWARD && !job->soft;
    return job->blocks == 1 && !(from_lse && job->p->classes > PYCE_FEW);
}

INLINE int batch_size(const pyce_job *job) {
    const int64_t fit = BATCH_CLASSES / job->p->classes;
    if (!in_batches(job)) return 1;
    return fit < 1 ? 1 : fit > BATCH ? BATCH : (int)fit;
}

/* Rows that lie side by side are as many streams as classes, more than a processor follows by itself:
   the lines of the next batch, and those that the result of this one goes to, are prefetched here. */
INLINE void prefetch_rows(const pyce_job *job, const lane_rows *rows, int n) {
    const pyce_operand *a = &job->p->logits, *g = &job->p->result;
    const element *x = (const element *)a->data + offset_of(a, rows->outer) + rows->inner;
    if (rows->separate) {
        if (a->class_stride != 1 || a->offsets || a->outer_stride < 0) return;
        const char *next = (const char *)x + FEW_AHEAD;
        /* The stride of a single row may be any number. */
        const int64_t stride = a->outer_stride < 4096 ? a->outer_stride : 4096;
        const int64_t bytes = rows->n * stride * (int64_t)sizeof(element);
        for (int64_t i = 0; i < bytes && i < 4096; i += 64) __builtin_prefetch(next + i, 0, 3);
        return;
    }
    const int64_t ahead = batch_size(job) * LANES;
    for (int c = 0; c < n; c++) __builtin_prefetch(x + c * a->class_stride + ahead, 0, 3);
    if (!pyce_has_result(job->p) || job->streaming) return;
    const element *out = (const element *)g->data + offset_of(g, rows->outer) + rows->inner;
    for (int c = 0; c < n; c++) __builtin_prefetch(out + c * g->class_stride, 1, 3);
}

/* Which rows are valid, and their labels. */
INLINE void load_labels(const pyce_problem *p, lane_rows *rows, row_state *s) {
    const int64_t ignore = p->ignore_index;
    rows->all_valid = 1;
    rows->label = v_set1(-1);
    s->row = rows->row;
    s->n = rows->n;
    /* Lanes without a row are not finalized, but their factors are looked at. */
    for (int i = 8; i < LANES; i += 8) {
        if (rows->n <= i) vd_store(s->factor + i, vd_set1(1.0));
    }
    if (!p->labels) {
        for (int i = 0; i < LANES; i += 8) vd_store(s->label + i, vd_set1(-1.0));
        return;
    }
    const int wide = p->target == PYCE_INDEX64;
    const int64_t *from = (const int64_t *)p->labels + rows->row;
    const int32_t *from32 = (const int32_t *)p->labels + rows->row;
    int64_t few[LANES];
    int32_t few32[LANES];
    if (rows->n < LANES) {
        for (int i = 0; i < LANES && wide; i++) few[i] = i < rows->n ? from[i] : 0;
        for (int i = 0; i < LANES && !wide; i++) few32[i] = i < rows->n ? from32[i] : 0;
        from = few;
        from32 = few32;
    }
    UNROLL
    for (int i = 0; i < LANES; i += 8) {
        vd_store(s->label + i,
                 wide ? vd_labels64(from + i, ignore) : vd_labels32(from32 + i, ignore));
    }
    rows->label = v_from_doubles(s->label);
    if (v_first(v_eq(rows->label, v_set1(-1))) < 0) return;
    rows->all_valid = 0;
    for (int i = 0; i < LANES; i++) rows->valid[i] = s->label[i] >= 0;
}

/* The next rows of a tile, up to `end`. */
INLINE lane_rows rows_at(const pyce_job *job, int64_t row, int64_t end) {
    const int64_t inner = job->p->inner;
    lane_rows rows;
    int64_t n = end - row;
    rows.row = row;
    rows.separate = inner == 1;
    rows.outer = row;
    rows.inner = 0;
    if (!rows.separate) {
        rows.outer = row / inner;
        rows.inner = row % inner;
        if (inner - rows.inner < n) n = inner - rows.inner;
    }
    rows.n = n < LANES ? (int)n : LANES;
    rows.to = &job->p->result;
    const size_t size = LANES * sizeof(element);
    if (!rows.separate && job->streaming && rows.to->data &&
        (size_t)rows.to->class_stride * sizeof(element) % size == 0) {
        /* Up to where whole vectors of the result are aligned, if ever. */
        const element *out =
            (const element *)rows.to->data + offset_of(rows.to, rows.outer) + rows.inner;
        const int past = (int)((uintptr_t)out % size / sizeof(element));
        if (past && rows.n > LANES - past) rows.n = LANES - past;
    }
    return rows;
}

/* -- rows of one block ------------------------------------------------------------------------------ */

/* The next lane blocks of a tile, at most `batch`; the losses of rows from `tile` on go to `losses`.
   Returns the number of rows. */
static __attribute__((noinline)) int64_t general_batch(const pyce_job *job, int64_t row,
                                                       int64_t end, int batch,
                                                       const lane_scratch *memory,
                                                       const pyce_operand *to, double *losses) {
    const pyce_problem *p = job->p;
    const int classes = (int)p->classes;
    row_state states[BATCH];
    lane_rows rows[BATCH];
    lane_scratch room[BATCH];
    vreal pivot[BATCH], max[BATCH];
    normaliser norm[BATCH];
    const real *b[BATCH] = {0};
    int step[BATCH] = {0};
    const int64_t first = row;
    int count = 0;
    for (; count < batch && row < end; count++) {
        room[count] = *memory;
        room[count].x += count * classes * LANES;
        room[count].b += count * classes * LANES;
        rows[count] = rows_at(job, row, end);
        rows[count].to = to;
        load_labels(p, rows + count, states + count);
        prefetch_rows(job, rows + count, classes);
        max[count] = load_and_max(job, rows + count, 0, classes, room[count].x);
        row += rows[count].n;
    }
    for (int t = 0; t < count; t++) norm[t] = normalise(max[t]);
    for (int t = 0; t < count; t++) {
        pivot[t] = lane_block_statistics(job, rows + t, 0, classes, max[t], norm[t], room + t,
                                         b + t, step + t, states + t);
        if (job->soft) {
            v_to_doubles(pivot[t], states[t].pivot);
            soft_of_special(b[t], step[t], states + t);
        }
    }
    finalize_rows(job, states, count);
    for (int t = 0; t < count; t++) {
        const row_state *s = states + t;
        double *loss = losses + (s->row - first);
        for (int i = 0; i < s->n; i += 8) {
            vd_storen(loss + i, rows_left(s, i), vd_load(s->loss + i));
        }
        if (p->operation == PYCE_LOG_SOFTMAX) {
            load_lane_block(&p->logits, rows + t, 0, classes, room[t].x);
            log_lane_block(s, classes, room[t].x);
            store_lane_block(job, rows + t, 0, classes, room[t].x);
        } else if (pyce_has_result(p)) {
            const vreal factor = v_from_doubles(s->factor);
            if (is_plain_gradient(job, rows + t, classes, factor)) {
                int place[LANES];
                real at[LANES];
                v_store(at, pivot[t]);
                for (int i = 0; i < LANES; i++) place[i] = (int)at[i];
                write_plain_gradient(rows + t, classes, room[t].x, factor, pivot[t],
                                     v_from_doubles(s->pivot_grad), place);
            } else {
                write_lane_block(job, rows + t, 0, classes, room + t, s, 0, step[t], b[t], pivot[t],
                                 rows[t].label);
            }
        }
    }
    return row - first;
}

#if COMPENSATED
#define is_index_job(job) 0
#define index_batch(job, row, end, batch, memory, to, losses) 0
#define is_soft_job(job) 0
#define soft_batch(job, row, end, batch, memory, to, losses) 0
#else
#include "few_index.inc.h"
#include "few_soft.inc.h"
#endif

static void batch_rows(const pyce_job *job, int64_t begin, int64_t end, const lane_scratch *memory,
                       double *losses, double *sums) {
    const pyce_problem *p = job->p;
    const int classes = (int)p->classes, batch = batch_size(job);
    const int by_index = is_index_job(job), soft = is_soft_job(job);
    /* Rows one after the other are streamed as one piece, since they begin and end within lines. */
    const pyce_operand *g = &p->result;
    const int staged = pyce_has_result(p) && job->streaming && p->inner == 1 &&
                       g->class_stride == 1 && !g->offsets && g->outer_stride == classes;
    pyce_operand stage = *g;
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        element *out = 0, *from = 0;
        if (staged) {
            out = (element *)g->data + row * classes;
            from = memory->stage + (uintptr_t)out % 64 / sizeof(element);
            stage.data = (void *)((uintptr_t)from - (uintptr_t)(row * classes) * sizeof(element));
        }
        const pyce_operand *to = staged ? &stage : g;
        double *loss = losses + (row - tile);
        int64_t n = 0;
        if (by_index) n = index_batch(job, row, tile_end, batch, memory, to, loss);
        if (soft) n = soft_batch(job, row, tile_end, batch, memory, to, loss);
        if (!n)
            n = general_batch(job, row, tile_end, by_index || soft ? 1 : batch, memory, to, loss);
        row += n;
        if (staged) stream_out(out, from, n * classes);
        if (row == tile_end) reduce_tile(job, tile, tile_end, losses, sums);
    }
    if (job->streaming) memory_fence();
}

/* -- the other rows ------------------------------------------------------------------------------------- */

/* The backward of some rows from their lse, as backward_blocks does it along a row. */
static void backward_lane_block(const pyce_job *job, const lane_rows *rows, lane_scratch *room,
                                pyce_block *blocks, row_state *s) {
    const pyce_problem *p = job->p;
    real lse[LANES];
    for (int i = 0; i < LANES; i++) {
        const int64_t row = rows->row + i;
        const int valid = lane_is_valid(rows, i);
        lse[i] = valid ? (real)p->lse[row] : 0;
        s->pivot_grad[i] = s->factor[i] = 0;
        if (valid) s->factor[i] = factor_from_lse(job, row, 0, s->label_grad + i);
    }
    const normaliser norm = normalise(v_load(lse));
    const vreal none = v_set1(-1);
    for (int64_t k = 0; k < job->blocks; k++) {
        const int n = block_size(job, k);
        const int64_t first = k * PYCE_BLOCK;
        real place[LANES];
        double sums[LANES];
        for (int i = 0; i < LANES; i++) {
            place[i] = (real)index_within((int64_t)s->label[i], first, n);
        }
        load_lane_block(&p->logits, rows, first, n, room->x);
        exp_many_classes(job, room->x, n, &norm, v_load(place), sums, s->rest_error);
        for (int i = 0; i < LANES; i++) blocks[i * job->blocks + k].sum = sums[i];
        write_lane_block(job, rows, first, n, room, s, 0, 0, 0, none, none);
    }
    for (int i = 0; i < rows->n; i++) {
        if (lane_is_valid(rows, i)) backward_label(job, rows->row + i, blocks + i * job->blocks);
    }
}

/* Whether the lse of every row suffices. Where some do, rows are taken one by one. */
static int backward_from_lse(const pyce_job *job, lane_rows *rows, row_state *s) {
    if (!LSE_SUFFICES || job->p->operation != PYCE_BACKWARD || job->soft) return 0;
    int fit = 1;
    for (int i = 0; i < rows->n; i++) {
        if (lane_is_valid(rows, i) && !lse_suffices(job, rows->row + i)) fit = 0;
    }
    if (!fit && rows->n > 1) {
        rows->n = 1;
        load_labels(job->p, rows, s);
        fit = lse_suffices(job, rows->row);
    }
    return fit;
}

/* The statistics of all blocks of some rows, and from them what follows for the rows. */
static void finalize_lanes(const pyce_job *job, const lane_rows *rows, lane_scratch *room,
                           pyce_block *blocks, row_state *s) {
    const real *b = 0;
    int step = 0;
    for (int64_t k = 0; k < job->blocks; k++) {
        const int n = block_size(job, k);
        const int64_t first = k * PYCE_BLOCK;
        const vreal max = load_and_max(job, rows, first, n, room->x);
        const vreal pivot =
            lane_block_statistics(job, rows, first, n, max, normalise(max), room, &b, &step, s);
        real place[LANES];
        v_store(place, pivot);
        for (int i = 0; i < LANES; i++) {
            pyce_block *block = blocks + i * job->blocks + k;
            *block = (pyce_block){.max = s->max[i], .sum = s->rest[i], .pivot = (int64_t)place[i]};
            if (COMPENSATED) block->sum_error = s->rest_error[i];
            if (!job->soft) continue;
            block->soft_sum = s->soft_sum[i];
            block->soft_sum_error = s->soft_sum_error[i];
            block->soft_loss = s->soft_loss[i];
            block->soft_loss_error = s->soft_loss_error[i];
        }
    }
    for (int i = 0; i < LANES; i++) {
        if (lane_is_valid(rows, i)) {
            combine_blocks(job, rows->row + i, blocks + i * job->blocks, i, s);
        } else {
            clear_lane(i, s);
        }
    }
    finalize_rows(job, s, 1);
}

/* The result of all blocks of some finalized rows: exponentials are computed again. */
static void write_lanes(const pyce_job *job, const lane_rows *rows, lane_scratch *room,
                        const pyce_block *blocks, const row_state *s) {
    const pyce_problem *p = job->p;
    const real *b = 0;
    int step = 0;
    for (int64_t k = 0; k < job->blocks; k++) {
        const int n = block_size(job, k);
        const int64_t first = k * PYCE_BLOCK;
        load_lane_block(&p->logits, rows, first, n, room->x);
        if (p->operation == PYCE_LOG_SOFTMAX) {
            log_lane_block(s, n, room->x);
            store_lane_block(job, rows, first, n, room->x);
            continue;
        }
        double scales[LANES];
        real max[LANES], pivot[LANES], label[LANES];
        for (int i = 0; i < LANES; i++) {
            const pyce_block *block = blocks + i * job->blocks + k;
            const int valid = lane_is_valid(rows, i);
            scales[i] = valid ? block->scale : BIAS_FACTOR;
            max[i] = valid ? (real)block->max : 0;
            pivot[i] = (real)index_within((int64_t)s->pivot[i], first, n);
            label[i] = (real)index_within((int64_t)s->label[i], first, n);
        }
        const normaliser norm = normalise(v_load(max));
        for (int c = 0; c < n; c++) {
            v_store(room->x + c * LANES, exp1(v_load(room->x + c * LANES), norm));
        }
        if (job->soft) step = load_soft(job, rows, first, n, room, &b);
        write_lane_block(job, rows, first, n, room, s, scales, step, b, v_load(pivot),
                         v_load(label));
    }
}

/* Classes of a lane block. */
INLINE size_t lane_block_classes(const pyce_job *job) {
    return (size_t)(job->blocks > 1 ? PYCE_BLOCK : job->p->classes);
}

static size_t few_scratch(const pyce_job *job) {
    const size_t classes = lane_block_classes(job), batch = (size_t)batch_size(job);
    const size_t blocks = (size_t)job->blocks * LANES * sizeof(pyce_block);
    return (classes * (2 * batch * LANES + 1) + batch * LANES + 64) * sizeof(real) + blocks +
           (batch * LANES * classes * sizeof(element) + 64) + 320;
}

static void few_rows(const pyce_job *job, int64_t begin, int64_t end, void *scratch, double *sums) {
    const size_t classes = lane_block_classes(job), batch = (size_t)batch_size(job);
    char *at = scratch;
    lane_scratch room;
    room.x = carve(&at, batch * (classes + 1) * LANES * sizeof(real));
    room.b = carve(&at, batch * classes * LANES * sizeof(real));
    room.coefficients = carve(&at, classes * sizeof(real));
    room.stage = carve(&at, batch * LANES * classes * sizeof(element) + 64);
    pyce_block *blocks = carve(&at, (size_t)job->blocks * LANES * sizeof(pyce_block));
    double losses[PYCE_TILE];
    if (in_batches(job)) {
        batch_rows(job, begin, end, &room, losses, sums);
        return;
    }
    row_state s;
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        lane_rows rows = rows_at(job, row, tile_end);
        load_labels(job->p, &rows, &s);
        if (backward_from_lse(job, &rows, &s)) {
            backward_lane_block(job, &rows, &room, blocks, &s);
        } else {
            finalize_lanes(job, &rows, &room, blocks, &s);
            for (int i = 0; i < rows.n; i++) losses[row - tile + i] = s.loss[i];
            if (pyce_has_result(job->p)) write_lanes(job, &rows, &room, blocks, &s);
        }
        row += rows.n;
        if (row == tile_end) reduce_tile(job, tile, tile_end, losses, sums);
    }
    if (job->streaming) memory_fence();
}
