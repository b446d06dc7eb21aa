/* One block of more than PYCE_FEW classes, class axis last: vectors run along the class axis.
 *
 * A unit is as many rows as fill a vector and as stay in the nearest cache. First the maxima of a
 * unit's rows are found, then their exponentials, then the rows are finalized; the unit before it
 * is written in between, so that no step waits for the one just before it:
 *
 *     fused      reads each logit twice, the second time from the nearest cache; writes each gradient once
 *     forward    the same reads
 *     backward   from a saved lse: reads each logit once, writes each gradient once; else as fused
 */

/* How far ahead memory is prefetched, in bytes. */
#define MEDIUM_AHEAD 16384
/* Up to this many classes, a unit's results are staged before they are streamed, because the partial
   lines at both ends of a row cost more than that. */
#define MEDIUM_STAGED 512
/* Numbers of four bytes in the exponentials of a unit, which stay in the nearest cache. */
#define UNIT_NUMBERS 4096
_Static_assert(2 * PYCE_BLOCK <= UNIT_NUMBERS, "two rows of floats are a unit");

typedef struct {
    real *e;        /* row by row, `stride` apart */
    real *b[2];     /* factors of one row, when its statistics are found and when it is written */
    element *in;    /* rows whose classes lie apart in memory, gathered */
    element *out;   /* one such row before it is scattered */
    element *stage; /* the unit's results before they are streamed, or NULL */
    int64_t stride;
    row_state state;
} unit;

INLINE int rows_per_unit(const pyce_job *job) {
    const int64_t fit = UNIT_NUMBERS * 4 / (int64_t)sizeof(real) / job->p->classes;
    return fit < 2 ? 2 : fit > LANES ? LANES : (int)fit;
}

static size_t medium_scratch(const pyce_job *job) {
    const size_t stride = (size_t)(job->p->classes + LANES - 1) / LANES * LANES,
                 rows = (size_t)rows_per_unit(job);
    return rows * stride * (sizeof(real) + 3 * sizeof(element)) + 128 + 2 * stride * sizeof(real) +
           stride * sizeof(element) + 2 * sizeof(unit) + 12 * 64;
}

/* Row i of the unit, one class after the other. */
INLINE const element *unit_row(const pyce_job *job, const unit *u, int i) {
    const pyce_operand *a = &job->p->logits;
    const element *x = (const element *)a->data + offset_of(a, u->state.row + i);
    return a->class_stride == 1 ? x : u->in + i * u->stride;
}

INLINE const real *unit_soft(const pyce_job *job, int64_t row, real *buffer) {
    if (job->soft == SOFT_WEIGHT) return buffer; /* the same for every row, filled once */
    return job->soft ? soft_block(job, row, 0, 0, (int)job->p->classes, buffer) : (const real *)0;
}

/* -- exponentials --------------------------------------------------------------------------------- */

/* How a row is written from its e. */
enum { WRITES_NOTHING, WRITES_PRODUCT, WRITES_SOFTMAX, WRITES_SOFT };
/* The numbers that it is written with: the factors of e and b with their rounding errors, b (of
   WRITES_SOFT) and the result. And the normaliser of the row whose e take its place: one pointer
   less in the loop. */
typedef struct {
    row_normaliser norm;
    real factor, factor_error, soft_factor, soft_factor_error;
    const real *b;
    element *out;
} row_writer;

/* factor·e − soft_factor·t. The factors are loaded where they are used: a step of the loop leaves no
   registers for them. */
HOT vreal soft_written(const row_writer *w, vreal e, vreal t) {
    return soft_difference(e, v_set1(w->factor), v_set1(w->factor_error), t, v_set1(0),
                           v_set1(w->soft_factor), v_set1(w->soft_factor_error));
}

/* Three things in one loop, so that none waits for the others: the row before, whose e stand where this
   row's go, is written as `writes` tells; with `adds`, the e of another row of the unit are added to
   *total (in memory, where a target has FEW_REGISTERS); and e of x is stored. */
HOT void exp_row(const element *x, int n, const row_normaliser *row, real *e, const int writes,
                 const row_writer *w, const int adds, const real *other, vsum *total) {
    const row_exponential f = exponential_of(row);
    const int soft = writes == WRITES_SOFT;
    element *out = writes ? w->out : 0;
    const real *b = soft ? w->b : 0;
    const vreal factor = v_set1(writes ? w->factor : 0);
    const vreal factor_error = v_set1(writes == WRITES_SOFTMAX ? w->factor_error : 0);
    vsum in_registers, *sum = FEW_REGISTERS ? total : &in_registers;
    if (adds) *sum = *total;
    int c = 0;
    for (; c + STEP <= n; c += STEP) {
        vreal v[STEP_VECTORS];
        if (writes) {
            UNROLL
            for (int j = 0; j < STEP_VECTORS; j++) {
                const int at = c + j * LANES;
                const vreal before = v_load(e + at);
                if (soft) {
                    m_store(out + at, soft_written(w, before, v_load(b + at)));
                } else if (writes == WRITES_SOFTMAX) {
                    m_store(out + at, quotient_of(before, factor, factor_error));
                } else {
                    m_store(out + at, v_mul(before, factor));
                }
            }
        }
        UNROLL
        for (int j = 0; j < STEP * (int)sizeof(element); j += 64) {
            __builtin_prefetch((const char *)(x + c) + MEDIUM_AHEAD + j, 0, 3);
        }
        if (adds) {
            UNROLL
            for (int j = 0; j < STEP_VECTORS; j++) sum_add_from(sum, other + c + j * LANES);
        }
        UNROLL
        for (int j = 0; j < STEP_VECTORS; j++) v[j] = m_load(x + c + j * LANES);
        row_exps(v, STEP_VECTORS, &f);
        UNROLL
        for (int j = 0; j < STEP_VECTORS; j++) v_store(e + c + j * LANES, v[j]);
    }
    for (; c < n; c += LANES) {
        const int left = n - c;
        if (adds) sum_add_from(sum, other + c);
        if (writes) {
            const vreal before = v_load(e + c);
            vreal g;
            if (soft) {
                const vreal t = left >= LANES ? v_load(b + c) : v_loadn(b + c, left, 0);
                g = soft_written(w, before, t);
            } else if (writes == WRITES_SOFTMAX) {
                g = quotient_of(before, factor, factor_error);
            } else {
                g = v_mul(before, factor);
            }
            if (left >= LANES) {
                m_store(out + c, g);
            } else {
                m_storen(out + c, left, g);
            }
        }
        /* There is room for whole vectors, and e past the last class is 0. */
        vreal v = left >= LANES ? m_load(x + c) : m_loadn(x + c, left, (real)-INFINITE);
        row_exps(&v, 1, &f);
        v_store(e + c, v);
    }
    if (adds) *total = *sum;
}
/* One function for each kind, so that the loop has the registers to itself. */
static __attribute__((noinline)) void exp_row_only(const element *x, int n,
                                                   const row_normaliser *norm, real *e) {
    exp_row(x, n, norm, e, WRITES_NOTHING, 0, 0, 0, 0);
}
static __attribute__((noinline)) void exp_row_add(const element *x, int n,
                                                  const row_normaliser *norm, real *e,
                                                  const real *other, vsum *total) {
    exp_row(x, n, norm, e, WRITES_NOTHING, 0, 1, other, total);
}
static __attribute__((noinline)) void exp_row_write(const element *x, int n, real *e,
                                                    const row_writer *w) {
    exp_row(x, n, &w->norm, e, WRITES_PRODUCT, w, 0, 0, 0);
}
static __attribute__((noinline)) void exp_row_write_add(const element *x, int n, real *e,
                                                        const row_writer *w, const real *other,
                                                        vsum *total) {
    exp_row(x, n, &w->norm, e, WRITES_PRODUCT, w, 1, other, total);
}
static __attribute__((noinline)) void exp_row_softmax(const element *x, int n, real *e,
                                                      const row_writer *w) {
    exp_row(x, n, &w->norm, e, WRITES_SOFTMAX, w, 0, 0, 0);
}
static __attribute__((noinline)) void exp_row_softmax_add(const element *x, int n, real *e,
                                                          const row_writer *w, const real *other,
                                                          vsum *total) {
    exp_row(x, n, &w->norm, e, WRITES_SOFTMAX, w, 1, other, total);
}
static __attribute__((noinline)) void exp_row_soft(const element *x, int n, real *e,
                                                   const row_writer *w) {
    exp_row(x, n, &w->norm, e, WRITES_SOFT, w, 0, 0, 0);
}
static __attribute__((noinline)) void exp_row_soft_add(const element *x, int n, real *e,
                                                       const row_writer *w, const real *other,
                                                       vsum *total) {
    exp_row(x, n, &w->norm, e, WRITES_SOFT, w, 1, other, total);
}
/* The one that writes the result of a job; `other` may be NULL. */
INLINE void exp_row_writing(const pyce_job *job, const element *x, int n, real *e,
                            const row_writer *w, const real *other, vsum *total) {
    if (other) {
        (job->soft         ? exp_row_soft_add
         : is_softmax(job) ? exp_row_softmax_add
                           : exp_row_write_add)(x, n, e, w, other, total);
    } else {
        (job->soft ? exp_row_soft : is_softmax(job) ? exp_row_softmax : exp_row_write)(x, n, e, w);
    }
}

/* -- writing ------------------------------------------------------------------------------------------ */

/* Where the unit's results are staged: as far from a multiple of 64 bytes as their destination. */
INLINE element *stage_of(const pyce_job *job, const unit *u) {
    const element *to = (const element *)job->p->result.data + u->state.row * job->p->classes;
    return u->stage + (uintptr_t)to % 64 / sizeof(element);
}

INLINE void flush_unit(const pyce_job *job, const unit *u) {
    if (!u->stage || !u->state.n) return;
    element *to = (element *)job->p->result.data + u->state.row * job->p->classes;
    stream_out(to, stage_of(job, u), u->state.n * job->p->classes);
}

/* The gradients at the label and the pivot of row i. */
INLINE void write_special(const pyce_job *job, const row_state *s, int i, element *out) {
    if (job->soft && s->label[i] >= 0) {
        m_storen(out + (int64_t)s->label[i], 1, v_set1((real)s->label_grad[i]));
    }
    if (job->p->operation <= PYCE_BACKWARD && s->pivot[i] >= 0) {
        m_storen(out + (int64_t)s->pivot[i], 1, v_set1((real)s->pivot_grad[i]));
    }
}

/* The gradient of row i of float logits, and none of the cases that a writer has: streaming, and a
   factor that is too small. */
INLINE void write_floats(const pyce_job *job, const unit *u, int i, const real *e, element *out) {
    const row_state *s = &u->state;
    const int n = (int)job->p->classes;
    real factor_error, soft_factor_error;
    const vreal factor = v_set1(round_to_real(s->factor[i], 0, &factor_error));
    int c = 0;
    if (job->soft) {
        const real *b = unit_soft(job, s->row + i, u->b[1]);
        const vreal d = v_set1(round_to_real(s->soft_factor[i], 0, &soft_factor_error));
        const vreal f_error = v_set1(factor_error), d_error = v_set1(soft_factor_error);
        const vreal zero = v_set1(0);
        for (; c + LANES <= n; c += LANES) {
            const vreal v = v_load(e + c), t = v_load(b + c);
            m_store(out + c, soft_difference(v, factor, f_error, t, zero, d, d_error));
        }
        if (c < n) {
            const vreal v = v_load(e + c), t = v_loadn(b + c, n - c, 0);
            m_storen(out + c, n - c, soft_difference(v, factor, f_error, t, zero, d, d_error));
            c = n;
        }
    }
    if (is_softmax(job)) {
        const vreal f_error = v_set1(factor_error);
        for (; c + LANES <= n; c += LANES) {
            m_store(out + c, quotient_of(v_load(e + c), factor, f_error));
        }
        if (c < n) m_storen(out + c, n - c, quotient_of(v_load(e + c), factor, f_error));
        return;
    }
    for (; c + LANES <= n; c += LANES) m_store(out + c, v_mul(v_load(e + c), factor));
    if (c < n) m_storen(out + c, n - c, v_mul(v_load(e + c), factor));
    write_special(job, s, i, out);
}

/* Whether row i of a finalized unit is written by one rule except at its special classes, one
   class after the other, so that it can be written while exponentials are computed. */
INLINE int is_plain_row(const pyce_job *job, const unit *u, int i) {
    return !COMPENSATED && job->p->operation != PYCE_LOG_SOFTMAX &&
           job->p->result.class_stride == 1 && (!job->streaming || u->stage) &&
           is_valid(job->p, u->state.row + i) && !is_too_small(u->state.factor[i]) &&
           !is_zero_row(job, &u->state, i);
}
/* Where row i of the unit is written to: contiguous rows only. */
INLINE element *unit_result(const pyce_job *job, const unit *u, int i) {
    if (u->stage) return stage_of(job, u) + (int64_t)i * job->p->classes;
    const pyce_operand *g = &job->p->result;
    return (element *)g->data + offset_of(g, u->state.row + i);
}

/* Of a plain row, while e with the normaliser `norm` are computed. */
INLINE row_writer row_writer_of(const pyce_job *job, const unit *u, int i, row_normaliser norm) {
    row_writer w = {.norm = norm,
                    .b = unit_soft(job, u->state.row + i, u->b[1]),
                    .out = unit_result(job, u, i)};
    w.factor = round_to_real(u->state.factor[i], 0, &w.factor_error);
    if (job->soft) {
        w.soft_factor = round_to_real(u->state.soft_factor[i], 0, &w.soft_factor_error);
    }
    return w;
}

/* The result of row i of a finalized unit, from its exponentials. */
INLINE void write_unit_row(const pyce_job *job, unit *u, int i) {
    const pyce_problem *p = job->p;
    const pyce_operand *g = &p->result;
    const row_state *s = &u->state;
    const int n = (int)p->classes;
    const int64_t row = s->row + i;
    element *result = (element *)g->data + offset_of(g, row);
    element *out = g->class_stride == 1 ? result : u->out;
    const int streams = job->streaming && !u->stage; /* row by row */
    if (u->stage) out = stage_of(job, u) + (int64_t)i * n;
    real *e = u->e + i * u->stride;
    if (!is_valid(p, row) || (p->operation <= PYCE_BACKWARD && is_zero_row(job, s, i))) {
        for (int c = 0; c < n; c++) out[c] = 0;
    } else if (p->operation == PYCE_LOG_SOFTMAX) {
        write_log_softmax(unit_row(job, u, i), n, s, i, out);
    } else if (streams || COMPENSATED || is_too_small(s->factor[i])) {
        const pyce_block one = {.scale = BIAS_FACTOR};
        const real *b = unit_soft(job, row, u->b[1]);
        writer w = writer_of(job, s, i, &one, 0, n, e, b, out);
        w.streaming = streams;
        write_all(&w);
    } else {
        write_floats(job, u, i, e, out);
    }
    if (g->class_stride != 1) scatter(out, n, result, g->class_stride);
}

/* -- statistics --------------------------------------------------------------------------------------- */

INLINE void clear_unit(const pyce_job *job, row_state *s) {
    const vd zero = vd_set1(0), none = vd_set1(-1.0);
    for (int i = 0; i < LANES; i += 8) {
        vd_store(s->rest + i, zero);
        vd_store(s->pivot_x + i, zero);
        vd_store(s->label_x + i, zero);
        vd_store(s->label + i, none);
        vd_store(s->pivot + i, none);
        if (!job->soft) continue;
        vd_store(s->pivot_b + i, zero);
        vd_store(s->label_b + i, zero);
        vd_store(s->soft_sum + i, zero);
        vd_store(s->soft_sum_error + i, zero);
        vd_store(s->soft_loss + i, zero);
        vd_store(s->soft_loss_error + i, zero);
    }
}

/* Maxima, exponentials and sums of a unit. Row by row, the unit before it is written if the operation
   has a result. With `from_lse`, a saved lse takes the place of the maximum. */
static void unit_statistics(const pyce_job *job, unit *u, unit *before, int from_lse) {
    const pyce_problem *p = job->p;
    const pyce_operand *a = &p->logits;
    row_state *s = &u->state;
    const int n = (int)p->classes, rows = s->n;
    const int write = pyce_has_result(p);
    real max[LANES], shift[LANES], magic[LANES], least[LANES];
    for (int i = 0; i < LANES; i++) max[i] = 0;
    clear_unit(job, s);
    for (int i = 0; i < rows; i++) {
        if (!is_valid(p, s->row + i)) continue;
        if (a->class_stride != 1) {
            gather((const element *)a->data + offset_of(a, s->row + i), a->class_stride, n,
                   u->in + i * u->stride);
        }
        max[i] = from_lse ? (real)p->lse[s->row + i] : block_max(unit_row(job, u, i), n);
    }
    const vreal top = v_load(max);
    const normaliser all = normalise(top);
    v_store(shift, all.shift);
    v_store(magic, all.magic);
    v_store(least, all.least);
    v_to_doubles(top, s->max);
    vsum sums[LANES];
    for (int i = 0; i < LANES; i++) sums[i] = sum_zero();
    const int work = write && before->state.n > rows ? before->state.n : rows;
    /* The row whose e are to be added up, its pivot, and the pivot's e, which is 0 meanwhile. */
    int last = -1, last_pivot = -1;
    real last_e = 0;
    for (int i = 0; i < work; i++) {
        const int64_t row = s->row + i;
        const int compute = i < rows && is_valid(p, row);
        const int writes = write && i < before->state.n;
        const int together = compute && writes && is_plain_row(job, before, i);
        if (writes && !together) write_unit_row(job, before, i);
        if (!compute) continue;
        const element *x = unit_row(job, u, i);
        const int64_t label = label_of(p, row);
        const int pivot = pivot_of(job, x, n, max[i], (int)label);
        const row_normaliser norm = {shift[i], magic[i], least[i]};
        real *e = u->e + i * u->stride;
        const real *other = last >= 0 ? u->e + last * u->stride : 0;
        vsum *sum = last >= 0 ? sums + last : 0;
        if (together) {
            const row_writer w = row_writer_of(job, before, i, norm);
            exp_row_writing(job, x, n, e, &w, other, sum);
            write_special(job, &before->state, i, w.out);
        } else if (other) {
            exp_row_add(x, n, &norm, e, other, sum);
        } else {
            exp_row_only(x, n, &norm, e);
        }
        if (last_pivot >= 0) u->e[last * u->stride + last_pivot] = last_e;
        last = i;
        last_pivot = pivot;
        if (pivot >= 0) {
            last_e = e[pivot];
            e[pivot] = 0;
        }
        s->label[i] = (double)label;
        s->pivot[i] = pivot;
        s->pivot_x[i] = pivot >= 0 ? (double)m_get(x + pivot) : -INFINITE;
        s->label_x[i] = label >= 0 ? (double)m_get(x + label) : -INFINITE;
        if (!job->soft) continue;
        pyce_block block;
        const real *b = unit_soft(job, row, u->b[0]);
        soft_statistics(job, x, b, 0, n, max[i], &block);
        s->soft_sum[i] = block.soft_sum;
        s->soft_sum_error[i] = block.soft_sum_error;
        s->soft_loss[i] = block.soft_loss;
        s->soft_loss_error[i] = block.soft_loss_error;
        if (pivot >= 0) s->pivot_b[i] = b[pivot];
        if (label >= 0) s->label_b[i] = b[label];
    }
    if (last >= 0) {
        real *e = u->e + last * u->stride;
        sum_of_e(&sums[last], e, n);
        if (last_pivot >= 0) e[last_pivot] = last_e;
    }
    if (write) flush_unit(job, before);
    for (int i = 0; i < LANES && i < (rows + 7) / 8 * 8; i += 8) {
        sum_totals(sums + i, s->rest + i, s->rest_error + i);
    }
}

/* In place of finalize_rows, where a saved lse took the place of the maximum. */
static void finalize_from_lse(const pyce_job *job, row_state *s) {
    const vd zero = vd_set1(0);
    for (int i = 0; i < s->n; i += 8) {
        const lse_factors f = factors_from_lse(job, s->row + i, rows_left(s, i), s->label + i);
        const vd others = vd_mul(vd_load(s->rest + i), f.to_p);
        vd_store(s->factor + i, vd_mul(f.scale, f.to_p));
        vd_store(s->pivot_grad + i, vd_sub(zero, vd_mul(f.scale, others)));
        vd_store(s->loss + i, zero);
    }
}

/* -- rows of one thread -------------------------------------------------------------------------- */

/* How many of n rows from `row` on are of one kind: *from_lse. */
INLINE int rows_alike(const pyce_job *job, int64_t row, int n, int *from_lse) {
    int known = 0;
    *from_lse = 0;
    if (job->p->operation != PYCE_BACKWARD) return n;
    for (int i = 0; i < n; i++) {
        if (!is_valid(job->p, row + i)) continue;
        const int suffices = lse_suffices(job, row + i);
        if (known && suffices != *from_lse) return i;
        *from_lse = suffices;
        known = 1;
    }
    return n;
}

static void medium_rows(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                        double *sums) {
    const pyce_problem *p = job->p;
    const pyce_operand *g = &p->result;
    char *at = scratch;
    const int fit = rows_per_unit(job), write = pyce_has_result(p);
    const size_t stride = (size_t)(job->p->classes + LANES - 1) / LANES * LANES;
    unit *units = carve(&at, 2 * sizeof *units);
    real *b0 = carve(&at, stride * sizeof(real)), *b1 = carve(&at, stride * sizeof(real));
    element *out = carve(&at, stride * sizeof(element));
    element *stage = carve(&at, (size_t)fit * stride * sizeof(element) + 64);
    real *e = carve(&at, (size_t)fit * stride * sizeof(real));
    const int staged = write && job->streaming && g->class_stride == 1 && !g->offsets &&
                       g->outer_stride == p->classes && p->classes <= MEDIUM_STAGED;
    if (job->soft == SOFT_WEIGHT) {
        soft_block(job, 0, 0, 0, (int)p->classes, b0);
        b1 = b0;
    }
    for (int i = 0; i < 2; i++) {
        units[i].e = e; /* of both: each row is written just before its place is taken */
        units[i].in = carve(&at, (size_t)fit * stride * sizeof(element));
        units[i].b[0] = b0;
        units[i].b[1] = b1;
        units[i].out = out;
        units[i].stage = staged ? stage : 0;
        units[i].stride = (int64_t)stride;
        units[i].state.n = 0;
    }
    double losses[PYCE_TILE];
    int turn = 0;
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        unit *now = units + turn, *before = units + 1 - turn;
        int from_lse;
        const int n =
            rows_alike(job, row, tile_end - row < fit ? (int)(tile_end - row) : fit, &from_lse);
        now->state.row = row;
        now->state.n = n;
        unit_statistics(job, now, before, from_lse);
        if (from_lse) {
            finalize_from_lse(job, &now->state);
        } else {
            finalize_rows(job, &now->state, 1);
        }
        for (int i = 0; i < n; i++) losses[row - tile + i] = now->state.loss[i];
        turn = 1 - turn;
        row += n;
        if (row == tile_end) reduce_tile(job, tile, tile_end, losses, sums);
    }
    unit *before = units + 1 - turn;
    for (int i = 0; write && i < before->state.n; i++) write_unit_row(job, before, i);
    if (write) flush_unit(job, before);
    if (job->streaming) memory_fence();
}
