/* Rows of one block of classes (up to PYCE_BLOCK), class axis last: vectors run along the class axis.
 * Stamped per dtype.
 *
 * A unit is as many rows as fill a vector and as stay in the nearest cache. Its maxima, then its
 * exponentials, then what follows for its rows are found; the unit before it is written in between,
 * so that no step waits for the one just before it:
 *
 *     fused      reads each logit twice, the second time from the nearest cache; writes each gradient once
 *     forward    the same reads
 *     backward   reads each logit once, writes each gradient once
 *
 * The sums have the order of wide.inc.h, and so the same bytes.
 */

/* How far in front of a row memory is fetched, in bytes, where logits and result don't fit the cache;
   and up to how many classes rows are put together before they go past it: their ends within a line
   cost more than that. */
#define SHORT_AHEAD 16384
#define SHORT_STAGED 512

typedef struct {
    REAL *e;    /* row by row, `kept` apart */
    REAL *b[2]; /* factors of one row, when it is measured and when it is written */
    T *in;      /* rows whose classes lie apart, gathered */
    T *out;     /* one such row before it is scattered */
    T *stage;   /* the unit's results on their way past the caches, or NULL */
    int64_t kept;
    NAME(row_set) set;
} NAME(short_unit);

INLINE int NAME(short_rows_fit)(const pyce_job *job) {
    const int64_t fit = 4096 * (int64_t)sizeof(float) / (int64_t)sizeof(REAL) / job->p->classes;
    return fit < 2 ? 2 : fit > W ? W : (int)fit;
}

static size_t NAME(short_scratch)(const pyce_job *job) {
    const size_t kept = (size_t)(job->p->classes + W - 1) / W * W,
                 rows = (size_t)NAME(short_rows_fit)(job);
    return rows * kept * (sizeof(REAL) + 3 * sizeof(T)) + 128 + 2 * kept * sizeof(REAL) +
           kept * sizeof(T) + 2 * sizeof(NAME(short_unit)) + 12 * 64;
}

/* Row i of the unit, one class after the other. */
INLINE const T *NAME(short_row)(const pyce_job *job, const NAME(short_unit) * unit, int i) {
    const pyce_operand *a = &job->p->logits;
    const T *x = (const T *)a->data + NAME(offset_of)(a, unit->set.row + i);
    return a->class_stride == 1 ? x : unit->in + i * unit->kept;
}

INLINE const REAL *NAME(short_dense)(const pyce_job *job, int64_t row, REAL *buffer) {
    if (job->dense == DENSE_WEIGHT) return buffer; /* the same for every row, put there once */
    return job->dense ? NAME(dense_block)(job, row, 0, 0, (int)job->p->classes, buffer)
                      : (const REAL *)0;
}

/* 0 in place of number `own` of eight vectors. */
INLINE void NAME(drop_own)(V v[8], int own) {
    const V at = F(sub)(F(set1)((REAL)own), F(load)(NAME(lanes)));
    UNROLL
    for (int j = 0; j < 8; j++) v[j] = F(drop)(F(eq)(at, F(set1)((REAL)(j * W))), v[j]);
}

/* Lane by lane: the sum of e over a row without class `own`, in the order of exp_block. */
INLINE F(sum) NAME(short_exp)(const T *x, int n, F(normaliser) norm, int own, int keep, REAL *e) {
    F(sum) sum = F(sum_zero)();
    int c = 0;
    for (; c + ROUND <= n; c += ROUND) {
        V v[8];
        UNROLL
        for (int j = 0; j < 8; j++) v[j] = LOAD(x + c + j * W);
        F(exp8)(v, norm);
        if (keep) {
            UNROLL
            for (int j = 0; j < 8; j++) F(store)(e + c + j * W, v[j]);
        }
        if (own >= c && own < c + ROUND) {
            NAME(drop_own)(v, own - c);
        }
        F(sum_add8)(&sum, v);
    }
    if (c == n) return sum;
    V v[8];
    const int count = (n - c + W - 1) / W, last = n - c - (count - 1) * W;
    UNROLL
    for (int j = 0; j < 8; j++) {
        v[j] = F(set1)(0);
        if (j < count - 1) v[j] = LOAD(x + c + j * W);
        if (j == count - 1) v[j] = LOADN(x + c + j * W, last, (REAL)-INFINITE);
    }
    F(exp_some)(v, count, norm);
    if (keep) {
        UNROLL
        for (int j = 0; j < 8; j++) {
            if (j < count) F(store)(e + c + j * W, v[j]); /* there is room for whole vectors */
        }
    }
    if (own >= c) NAME(drop_own)(v, own - c);
    F(sum_add8)(&sum, v);
    return sum;
}

/* Where the unit's results are put together: as far from a multiple of 64 bytes as where they go. */
INLINE T *NAME(staged)(const pyce_job *job, const NAME(short_unit) * unit) {
    const T *to = (const T *)job->p->result.data + unit->set.row * job->p->classes;
    return unit->stage + (uintptr_t)to % 64 / sizeof(T);
}

INLINE void NAME(short_flush)(const pyce_job *job, const NAME(short_unit) * unit) {
    if (!unit->stage || !unit->set.n) return;
    T *to = (T *)job->p->result.data + unit->set.row * job->p->classes;
    NAME(stream_out)(to, NAME(staged)(job, unit), unit->set.n * job->p->classes);
}

/* The result of row i of a settled unit, from what is kept of it. */
INLINE void NAME(short_write)(const pyce_job *job, NAME(short_unit) * unit, int i) {
    const pyce_problem *p = job->p;
    const pyce_operand *g = &p->result;
    const NAME(row_set) *s = &unit->set;
    const int n = (int)p->classes;
    const int64_t row = s->row + i;
    const double least = W == 8 ? 0x1p-1021 : 0x1p-125;
    T *result = (T *)g->data + NAME(offset_of)(g, row);
    T *out = g->class_stride == 1 ? result : unit->out;
    const int past = job->streaming && !unit->stage; /* rows on their own */
    if (unit->stage) out = NAME(staged)(job, unit) + (int64_t)i * n;
    REAL *e = unit->e + i * unit->kept;
    if (!NAME(is_live)(p, row)) {
        for (int c = 0; c < n; c++) out[c] = 0;
    } else if (p->operation == PYCE_LOG_SOFTMAX) {
        NAME(write_log)(NAME(short_row)(job, unit, i), n, (REAL)s->max[i], s->log[i],
                        W == 8 ? s->log_low[i] : 0, out);
    } else if (past || W == 8 || !(__builtin_fabs(s->factor[i]) >= least)) {
        const pyce_block one = {.scale = 1};
        const REAL *b = NAME(short_dense)(job, row, unit->b[1]);
        NAME(writer) w = NAME(writer_of)(job, s, i, &one, 0, n, e, b, out);
        w.streaming = past;
        NAME(write_head)(&w);
        NAME(write_rest)(&w);
    } else {
        REAL factor_low, dense_low;
        const V f = F(set1)(NAME(in_parts)(s->factor[i], 0, &factor_low));
        int c = 0;
        if (job->dense) {
            const REAL *b = NAME(short_dense)(job, row, unit->b[1]);
            const V d = F(set1)(NAME(in_parts)(s->dense_factor[i], 0, &dense_low));
            const V f_low = F(set1)(factor_low), d_low = F(set1)(dense_low);
            for (; c + W <= n; c += W) {
                const V v = F(load)(e + c), t = F(load)(b + c);
                STORE(out + c, NAME(difference)(v, f, f_low, t, F(set1)(0), d, d_low));
            }
            if (c < n) {
                const V v = F(load)(e + c), t = F(loadn)(b + c, n - c, 0);
                STOREN(out + c, n - c, NAME(difference)(v, f, f_low, t, F(set1)(0), d, d_low));
                c = n;
            }
        }
        for (; c + W <= n; c += W) STORE(out + c, F(mul)(F(load)(e + c), f));
        if (c < n) STOREN(out + c, n - c, F(mul)(F(load)(e + c), f));
        if (job->dense && s->label[i] >= 0) {
            STOREN(out + (int64_t)s->label[i], 1, F(set1)((REAL)s->label_grad[i]));
        }
        if (p->operation <= PYCE_BACKWARD && s->own[i] >= 0) {
            STOREN(out + (int64_t)s->own[i], 1, F(set1)((REAL)s->own_grad[i]));
        }
    }
    if (g->class_stride != 1) NAME(scatter)(out, n, result, g->class_stride);
}

/* Maxima, exponentials and sums of a unit; row by row, the unit before it is written if `write`. From
   a saved lse (`from_lse`), that takes the place of the maximum. */
INLINE void NAME(short_measure)(const pyce_job *job, NAME(short_unit) * unit,
                                NAME(short_unit) * before, int from_lse, int keep, int write) {
    const pyce_problem *p = job->p;
    const pyce_operand *a = &p->logits;
    NAME(row_set) *s = &unit->set;
    const int n = (int)p->classes, rows = s->n;
    REAL max[W], shift[W], magic[W], least[W];
    for (int i = 0; i < W; i++) max[i] = 0;
    for (int i = 0; i < W; i += 8) {
        const vd zero = vd_set1(0);
        vd_store(s->rest + i, zero);
        vd_store(s->own_x + i, zero);
        vd_store(s->label_x + i, zero);
        vd_store(s->label + i, vd_set1(-1.0));
        vd_store(s->own + i, vd_set1(-1.0));
        if (!job->dense) continue;
        vd_store(s->own_b + i, zero);
        vd_store(s->label_b + i, zero);
        vd_store(s->dense + i, zero);
        vd_store(s->dense_low + i, zero);
        vd_store(s->dense_loss + i, zero);
        vd_store(s->dense_loss_low + i, zero);
    }
    for (int i = 0; i < rows; i++) {
        if (!NAME(is_live)(p, s->row + i)) continue;
        if (a->class_stride != 1) {
            NAME(gather)((const T *)a->data + NAME(offset_of)(a, s->row + i), a->class_stride, n,
                         unit->in + i * unit->kept);
        }
        max[i] =
            from_lse ? (REAL)p->lse[s->row + i] : NAME(block_max)(NAME(short_row)(job, unit, i), n);
    }
    const V top = F(load)(max);
    const F(normaliser) all = F(normalise)(top);
    F(store)(shift, all.shift);
    F(store)(magic, all.magic);
    F(store)(least, all.least);
    F(to_doubles)(top, s->max);
    F(sum) sums[W];
    for (int i = 0; i < W; i++) sums[i] = F(sum_zero)();
    const int work = write && before->set.n > rows ? before->set.n : rows;
    for (int i = 0; i < work; i++) {
        const int64_t row = s->row + i;
        if (write && i < before->set.n) NAME(short_write)(job, before, i);
        if (i >= rows || !NAME(is_live)(p, row)) continue;
        const T *x = NAME(short_row)(job, unit, i);
        if (job->streaming && a->class_stride == 1) {
            const char *ahead = (const char *)x + SHORT_AHEAD;
            for (int at = 0; at < n * (int)sizeof(T); at += 64)
                __builtin_prefetch(ahead + at, 0, 2);
        }
        const int64_t label = NAME(label_of)(p, row);
        int own = -1;
        if (job->own == OWN_LABEL) own = (int)label;
        if (job->own == OWN_MAX) own = NAME(find)(x, n, max[i]);
        F(normaliser) norm = all;
        norm.shift = F(set1)(shift[i]);
        norm.magic = F(set1)(magic[i]);
        norm.least = F(set1)(least[i]);
        sums[i] = NAME(short_exp)(x, n, norm, own, keep, unit->e + i * unit->kept);
        s->label[i] = (double)label;
        s->own[i] = own;
        s->own_x[i] = own >= 0 ? (double)GET(x + own) : -INFINITE;
        s->label_x[i] = label >= 0 ? (double)GET(x + label) : -INFINITE;
        if (!job->dense) continue;
        pyce_block block;
        const REAL *b = NAME(short_dense)(job, row, unit->b[0]);
        NAME(add_dense)(job, x, b, NAME(weights_from)(job, 0), n, NAME(finite_or_0)(max[i]),
                        job->dense == DENSE_ONE, &block);
        s->dense[i] = block.dense;
        s->dense_low[i] = block.dense_low;
        s->dense_loss[i] = block.dense_loss;
        s->dense_loss_low[i] = block.dense_loss_low;
        if (own >= 0) s->own_b[i] = b[own];
        if (label >= 0) s->label_b[i] = b[label];
    }
    if (write) NAME(short_flush)(job, before);
    for (int i = 0; i < W && i < (rows + 7) / 8 * 8; i += 8) {
        F(sum_totals)(sums + i, s->rest + i, s->rest_low + i);
    }
}

/* What follows for rows of one kind: those whose lse serves as their maximum. */
INLINE void NAME(short_from_lse)(const pyce_job *job, NAME(row_set) * s) {
    const pyce_problem *p = job->p;
    const F(normaliser) norm = F(normalise)(F(from_doubles)(s->max));
    const vd zero = vd_set1(0);
    for (int i = 0; i < s->n; i += 8) {
        const int left = NAME(left)(s, i);
        const vdm dead = vd_eq(vd_load(s->label + i), vd_set1(-1.0));
        /* As lse_scale and row_scale. */
        const vd lse = vd_drop(dead, vd_loadn(p->lse + s->row + i, left, 0));
        const vd to_p =
            exp_of(vd_sub(NAME(eight)(norm.shift, i), lse), NAME(eight)(norm.exponent, i));
        vd scale = vd_set1(job->grad_scale);
        if (p->weight) {
            double weight[8] = {0};
            for (int k = 0; k < left; k++) {
                if (s->label[i + k] >= 0) weight[k] = p->weight[(int64_t)s->label[i + k]];
            }
            scale = vd_mul(scale, vd_load(weight));
        }
        if (p->sample_weight) {
            scale = vd_mul(scale, vd_loadn(p->sample_weight + s->row + i, left, 0));
        }
        if (p->grad_losses) {
            scale = vd_mul(scale, vd_loadn(p->grad_losses + s->row + i, left, 0));
        }
        const vd others = vd_mul(vd_load(s->rest + i), to_p);
        vd_store(s->factor + i, vd_mul(scale, to_p));
        vd_store(s->own_grad + i, vd_sub(zero, vd_mul(scale, others)));
        vd_store(s->loss + i, zero);
    }
}

static void NAME(short_rows)(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                             double *sums) {
    const pyce_problem *p = job->p;
    char *at = scratch;
    const int fit = NAME(short_rows_fit)(job);
    const size_t kept = (size_t)(job->p->classes + W - 1) / W * W;
    const int write = p->operation != PYCE_FORWARD && p->operation != PYCE_LOGSUMEXP;
    const int keep = write && p->operation != PYCE_LOG_SOFTMAX;
    NAME(short_unit) *units = NAME(carve)(&at, 2 * sizeof *units);
    REAL *b0 = NAME(carve)(&at, kept * sizeof(REAL)), *b1 = NAME(carve)(&at, kept * sizeof(REAL));
    T *out = NAME(carve)(&at, kept * sizeof(T));
    T *stage = NAME(carve)(&at, (size_t)fit * kept * sizeof(T) + 64);
    const pyce_operand *g = &p->result;
    const int staged = write && job->streaming && g->class_stride == 1 && !g->offsets &&
                       g->outer_stride == p->classes && p->classes <= SHORT_STAGED;
    REAL *e = NAME(carve)(&at, (size_t)fit * kept * sizeof(REAL));
    if (job->dense == DENSE_WEIGHT) {
        NAME(dense_block)(job, 0, 0, 0, (int)p->classes, b0);
        b1 = b0;
    }
    for (int i = 0; i < 2; i++) {
        units[i].e = e; /* of both: each row is written just before its place is taken */
        units[i].in = NAME(carve)(&at, (size_t)fit * kept * sizeof(T));
        units[i].b[0] = b0;
        units[i].b[1] = b1;
        units[i].out = out;
        units[i].stage = staged ? stage : 0;
        units[i].kept = (int64_t)kept;
        units[i].set.n = 0;
    }
    double losses[PYCE_TILE];
    int turn = 0;
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        NAME(short_unit) *now = units + turn, *before = units + 1 - turn;
        int n = tile_end - row < fit ? (int)(tile_end - row) : fit;
        int from_lse = 0, known = 0;
        for (int i = 0; i < n && p->operation == PYCE_BACKWARD; i++) {
            if (!NAME(is_live)(p, row + i)) continue;
            const int will_do = NAME(one_pass)(job, row + i);
            if (known && will_do != from_lse) n = i; /* rows of one kind */
            if (!known) from_lse = will_do;
            known = 1;
        }
        now->set.row = row;
        now->set.n = n;
        NAME(short_measure)(job, now, before, from_lse, keep, write);
        if (from_lse) {
            NAME(short_from_lse)(job, &now->set);
        } else {
            NAME(settle_rows)(job, &now->set, 1);
        }
        for (int i = 0; i < n; i++) losses[row - tile + i] = now->set.loss[i];
        turn = 1 - turn;
        row += n;
        if (row == tile_end) NAME(reduce_tile)(job, tile, tile_end, losses, sums);
    }
    NAME(short_unit) *before = units + 1 - turn;
    for (int i = 0; write && i < before->set.n; i++) NAME(short_write)(job, before, i);
    if (write) NAME(short_flush)(job, before);
    if (job->streaming) memory_fence();
}
