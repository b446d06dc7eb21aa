/* Statistics of blocks, vectors running along the class axis, and a row's from those of its blocks.
 *
 * Sums: vectors are added one by one to running sums per lane, the lanes are added up in a fixed
 * order at the end of a block, the blocks in order. This order is the same for every target and
 * driver (in few.inc.h above PYCE_FEW classes), so a row has the same bytes wherever its class axis
 * is.
 */

/* How far ahead of the block whose maximum is taken memory is prefetched, in elements. */
#define AHEAD PYCE_BLOCK

/* -- maxima ------------------------------------------------------------------------------------------- */

/* Lane by lane: the maximum of all lanes is that of n numbers. */
INLINE vreal vector_max(const element *x, int n) {
    const vreal least = v_set1((real)-INFINITE);
    vreal m0 = least, m1 = least, m2 = least, m3 = least;
    int c = 0;
    for (; c + 4 * LANES <= n; c += 4 * LANES) {
        m0 = v_max(m_load(x + c), m0);
        m1 = v_max(m_load(x + c + LANES), m1);
        m2 = v_max(m_load(x + c + 2 * LANES), m2);
        m3 = v_max(m_load(x + c + 3 * LANES), m3);
    }
    for (; c + LANES <= n; c += LANES) m0 = v_max(m_load(x + c), m0);
    if (c < n) m1 = v_max(m_loadn(x + c, n - c, (real)-INFINITE), m1);
    return v_max(v_max(m0, m1), v_max(m2, m3));
}
INLINE real block_max(const element *x, int n) { return v_reduce_max(vector_max(x, n)); }

/* Whether the maximum of four vectors is `value`, which none of their numbers exceeds. */
INLINE int four_have(const element *x, vreal value) {
    vreal max = v_set1((real)-INFINITE);
    UNROLL
    for (int i = 0; i < 4; i++) max = v_max(m_load(x + i * LANES), max);
    return v_first(v_eq(max, value)) >= 0;
}
/* The first class with this value, the maximum of all, or −1. */
static int find_value(const element *x, int n, real value) {
    for (int c = 0; c < n;) {
        const int left = n - c;
        if (left >= 4 * LANES && !four_have(x + c, v_set1(value))) {
            c += 4 * LANES;
            continue;
        }
        /* A fill that is not found: NaN. */
        const vreal v = left >= LANES ? m_load(x + c) : m_loadn(x + c, left, (real)NOT_A_NUMBER);
        const int lane = v_first(v_eq(v, v_set1(value)));
        if (lane >= 0) return c + lane;
        c += LANES;
    }
    return -1;
}

/* The class that a block's sum leaves out, or −1; `label` is the label within the block, or −1. */
INLINE int pivot_of(const pyce_job *job, const element *x, int n, real max, int label) {
    if (job->pivot == PIVOT_LABEL) return label;
    return job->pivot == PIVOT_MAX ? find_value(x, n, max) : -1;
}

/* -- exponentials --------------------------------------------------------------------------------- */

INLINE row_normaliser first_lane(const normaliser *norm) {
    real shift[LANES], magic[LANES], least[LANES];
    v_store(shift, norm->shift);
    v_store(magic, norm->magic);
    v_store(least, norm->least);
    return (row_normaliser){shift[0], magic[0], least[0]};
}
INLINE normaliser all_lanes(const row_normaliser *row) {
    const normaliser norm = {.shift = v_set1(row->shift),
                             .exponent = v_set1(0),
                             .magic = v_set1(row->magic),
                             .least = v_set1(row->least)};
    return norm;
}

/* The numbers with which a loop along a row computes exponentials. Where a target has
   FEW_REGISTERS, a step's data leave no room for constants: each step loads them where it uses
   them. A compiler that sees that they do not change would keep them on the stack instead, and
   HIDE prevents that. */
typedef struct {
    normaliser all;
    const row_normaliser *row; /* the same in memory, or NULL */
    const exp_constants *constants;
} row_exponential;

INLINE row_exponential exponential_of(const row_normaliser *row) {
    row_exponential f = {all_lanes(row), FEW_REGISTERS ? row : 0, &constants_of_exp};
    HIDE(f.constants);
    return f;
}
HOT void row_exps(vreal v[], const int count, const row_exponential *f) {
    exps_with(v, count, &f->all, f->row, f->constants);
}

/* `steps` times STEP_VECTORS vectors: with `writes`, as many of `w` are written, none of which contains
   a special class; then e of x is stored to `e` (which may be where those of `w` stood); and the
   maximum of as many numbers of the `next` block is taken; and as many exponentials from `other`, of
   the block before, are added to *total. What comes after that is prefetched. */
HOT void exp_steps(const element *x, int steps, const row_normaliser *row, real *e, const writer *w,
                   const element *next, vreal *max, const real *other, vsum *total,
                   const int writes, const int soft, const int streaming, const int softmax) {
    const row_exponential f = exponential_of(row);
    vsum in_registers, *sum = FEW_REGISTERS ? total : &in_registers;
    *sum = *total;
    vreal m0 = *max, m1 = m0;
    const real *from = writes ? w->e + w->at : 0, *b = soft ? w->b + w->at : 0;
    element *to = writes ? w->out + w->at : 0;
    for (; steps > 0; steps--) {
        vreal v[STEP_VECTORS];
        if (writes) {
            UNROLL
            for (int j = 0; j < STEP_VECTORS; j++) {
                const vreal before = v_load(from + j * LANES);
                const vreal g = soft ? scaled_soft(w, before, v_load(b + j * LANES),
                                                   (int)(b - w->b) + j * LANES, LANES)
                                     : scaled(w, before, softmax);
                if (streaming) {
                    m_stream(to + j * LANES, g);
                } else {
                    m_store(to + j * LANES, g);
                }
            }
            from += STEP;
            to += STEP;
            if (soft) b += STEP;
        }
        UNROLL
        for (int j = 0; j < STEP * (int)sizeof(element); j += 64) {
            __builtin_prefetch((const char *)(next + AHEAD) + j, 0, 2);
        }
        UNROLL
        for (int j = 0; j < STEP_VECTORS; j++) sum_add_from(sum, other + j * LANES);
        other += STEP;
        UNROLL
        for (int j = 0; j < STEP_VECTORS; j++) v[j] = m_load(x + j * LANES);
        row_exps(v, STEP_VECTORS, &f);
        UNROLL
        for (int j = 0; j < STEP_VECTORS; j++) v_store(e + j * LANES, v[j]);
        e += STEP;
        x += STEP;
        UNROLL
        for (int j = 0; j < STEP_VECTORS; j++) {
            vreal *m = j % 2 && !FEW_REGISTERS ? &m1 : &m0;
            *m = v_max(m_load(next + j * LANES), *m);
        }
        next += STEP;
    }
    *max = v_max(m0, m1);
    *total = *sum;
}
/* One function for each kind, so that the loop has the registers to itself. */
static __attribute__((noinline)) void exp_only(const element *x, int steps,
                                               const row_normaliser *norm, real *e, const writer *w,
                                               const element *next, vreal *max, const real *other,
                                               vsum *total) {
    exp_steps(x, steps, norm, e, w, next, max, other, total, 0, 0, 0, 0);
}
static __attribute__((noinline)) void exp_write(const element *x, int steps,
                                                const row_normaliser *norm, real *e,
                                                const writer *w, const element *next, vreal *max,
                                                const real *other, vsum *total) {
    exp_steps(x, steps, norm, e, w, next, max, other, total, 1, 0, 0, 0);
}
static __attribute__((noinline)) void exp_stream(const element *x, int steps,
                                                 const row_normaliser *norm, real *e,
                                                 const writer *w, const element *next, vreal *max,
                                                 const real *other, vsum *total) {
    exp_steps(x, steps, norm, e, w, next, max, other, total, 1, 0, 1, 0);
}
static __attribute__((noinline)) void
exp_write_softmax(const element *x, int steps, const row_normaliser *norm, real *e, const writer *w,
                  const element *next, vreal *max, const real *other, vsum *total) {
    exp_steps(x, steps, norm, e, w, next, max, other, total, 1, 0, 0, 1);
}
static __attribute__((noinline)) void exp_stream_softmax(const element *x, int steps,
                                                         const row_normaliser *norm, real *e,
                                                         const writer *w, const element *next,
                                                         vreal *max, const real *other,
                                                         vsum *total) {
    exp_steps(x, steps, norm, e, w, next, max, other, total, 1, 0, 1, 1);
}
static __attribute__((noinline)) void exp_write_soft(const element *x, int steps,
                                                     const row_normaliser *norm, real *e,
                                                     const writer *w, const element *next,
                                                     vreal *max, const real *other, vsum *total) {
    exp_steps(x, steps, norm, e, w, next, max, other, total, 1, 1, 0, 0);
}
static __attribute__((noinline)) void exp_stream_soft(const element *x, int steps,
                                                      const row_normaliser *norm, real *e,
                                                      const writer *w, const element *next,
                                                      vreal *max, const real *other, vsum *total) {
    exp_steps(x, steps, norm, e, w, next, max, other, total, 1, 1, 1, 0);
}

/* The rest of a block after whole steps: n < STEP. */
INLINE void exp_partial(const element *x, int n, const row_normaliser *row, real *e) {
    const row_exponential f = exponential_of(row);
    /* `e` has room for whole vectors; those past n become 0. */
    for (int c = 0; c < n; c += LANES) {
        const int left = n - c;
        vreal v = left >= LANES ? m_load(x + c) : m_loadn(x + c, left, (real)-INFINITE);
        row_exps(&v, 1, &f);
        v_store(e + c, v);
    }
}

/* Σ e of n classes. The exponentials are read back from the nearest cache: in the loop that
   computes them, converting them to double precision takes longer. `e` is zero up to the end of
   the last vector. */
INLINE void sum_of_e(vsum *sum, const real *e, int n) {
    for (int c = 0; c < n; c += LANES) sum_add_from(sum, e + c);
}

/* A block whose exponentials are not yet added up, which is done while those of the next block are
   computed; these may take their place. */
typedef struct {
    real *e; /* NULL where there is none */
    pyce_block *block;
    real pivot_e; /* e[pivot], which is 0 meanwhile */
    int n;
    int pivot; /* within the block, or −1 */
    int kept;  /* whether e[pivot] is needed afterwards */
} unsummed;

INLINE unsummed unsummed_block(pyce_block *block, int pivot, real *e, int n, int kept) {
    unsummed u = {e, block, 0, n, pivot, kept};
    if (pivot >= 0) {
        u.pivot_e = e[pivot];
        e[pivot] = 0;
    }
    return u;
}
/* Adds up the rest of a block of which `done` classes are in `sum`. */
INLINE void sum_rest(unsummed *u, vsum sum, int done) {
    if (!u->e) return;
    sum_of_e(&sum, u->e + done, u->n - done);
    u->block->sum = sum_total(sum, &u->block->sum_error);
    if (u->pivot >= 0 && u->kept) u->e[u->pivot] = u->pivot_e;
    u->e = 0;
}
INLINE void sum_block(unsummed *u) { sum_rest(u, sum_zero(), 0); }

/* The block after the one whose exponentials are computed, and its maximum. */
typedef struct {
    const element *x; /* NULL where there is none */
    int n;
    real max;
} next_block;

/* Exponentials of a block whose normaliser is known, while `w` (if any) is written, the maximum of the
   next block is found, and the block `last` (which is not shorter) is added up. */
static __attribute__((noinline)) void exp_block(const element *x, int n, const normaliser *norm,
                                                real *e, writer *w, next_block *next,
                                                unsummed *last) {
    const row_normaliser row = first_lane(norm);
    vreal max = v_set1((real)-INFINITE);
    vsum sum = sum_zero(), dropped = sum;
    int seen = 0; /* classes of the next block whose maximum is known */
    if (w) write_head(w);
    int c = 0;
    while (n - c >= STEP) {
        int steps = (n - c) / STEP;
        const int fit = w ? vectors_before_special(w) / STEP_VECTORS : 0;
        if (fit) {
            if (fit < steps) steps = fit;
        } else if (w) {
            steps = 1;
            write_until(w, c + STEP);
        }
        /* Where there is no next block, the maximum of this one is taken and dropped. */
        vreal none = max;
        const element *ahead = x + c;
        if (seen == c && c + STEP <= next->n) {
            if (c + steps * STEP > next->n) steps = (next->n - c) / STEP;
            seen += steps * STEP;
            ahead = next->x + c;
        }
        vreal *found = ahead == x + c ? &none : &max;
        const real *other = (last->e ? last->e : e) + c;
        vsum *total = last->e ? &sum : &dropped;
        if (!fit) {
            exp_only(x + c, steps, &row, e + c, 0, ahead, found, other, total);
        } else if (w->b) {
            (w->streaming ? exp_stream_soft : exp_write_soft)(x + c, steps, &row, e + c, w, ahead,
                                                              found, other, total);
        } else if (is_softmax(w->job)) {
            (w->streaming ? exp_stream_softmax : exp_write_softmax)(x + c, steps, &row, e + c, w,
                                                                    ahead, found, other, total);
        } else {
            (w->streaming ? exp_stream : exp_write)(x + c, steps, &row, e + c, w, ahead, found,
                                                    other, total);
        }
        if (fit) w->at += steps * STEP;
        c += steps * STEP;
    }
    if (w) write_rest(w);
    sum_rest(last, sum, c);
    exp_partial(x + c, n - c, &row, e + c);
    if (next->x) {
        max = v_max(vector_max(next->x + seen, next->n - seen), max);
        next->max = v_reduce_max(max);
    }
}

/* -- statistics --------------------------------------------------------------------------------------- */

INLINE real finite_or_0(real x) { return x - x == 0 ? x : 0; }

/* Σ b and Σ b·(max − x) of a block; terms with b = 0 count 0 whatever x is. `one`: b is 1
   everywhere. */
static __attribute__((noinline)) void general_soft_sums(const pyce_job *job, const element *x,
                                                        const real *b, int64_t first, int n,
                                                        real max, vsum *to_total, vsum *to_loss) {
    const int one = job->soft == SOFT_ONE;
    const double *weights = class_weights_from(job, first);
    const vreal top = v_set1(max);
    vsum total = sum_zero(), loss = sum_zero();
    for (int c = 0; c < n; c += CHUNK) {
        vreal t[8], errors[8];
        if (!one) {
            UNROLL
            for (int j = 0; j < CHUNK * (int)sizeof(real); j += 64) {
                __builtin_prefetch((const char *)(b + c + PYCE_BLOCK) + j, 0, 2);
            }
        }
        UNROLL
        for (int j = 0; j < 8; j++) {
            const int at = c + j * LANES, left = n - at;
            t[j] = errors[j] = v_set1(0);
            if (left <= 0) continue;
            const vreal v =
                left >= LANES ? m_load(x + at) : m_loadn(x + at, left, sum_loss_fill(one, max));
            if (!one) {
                t[j] = left >= LANES ? v_load(b + at) : v_loadn(b + at, left, 0);
                t[j] = blended(job, t[j], load_weights(weights, at, left), &errors[j]);
            }
            sum_add_loss(&loss, one, t[j], errors[j], top, v);
        }
        if (!one) {
            sum_add8(&total, t);
            sum_add_errors(&total, errors);
        }
    }
    *to_total = total;
    *to_loss = loss;
}

static __attribute__((noinline)) void soft_statistics(const pyce_job *job, const element *x,
                                                      const real *b, int64_t first, int n,
                                                      real block_max, pyce_block *block) {
    const int one = job->soft == SOFT_ONE;
    const real max = finite_or_0(block_max);
    vsum total = sum_zero(), loss = total;
    if (!(one ? sum_of_logits(x, n, &loss) : finite_soft_sums(x, b, n, max, &total, &loss))) {
        general_soft_sums(job, x, b, first, n, max, &total, &loss);
    }
    block->soft_sum_error = 0;
    block->soft_sum = one ? n : sum_total(total, &block->soft_sum_error);
    block->soft_loss = sum_total(loss, &block->soft_loss_error);
    if (one) block->soft_loss = sum_distance_one(block->soft_loss, max, n);
}

/* The statistics of n classes from `first` on, from their maximum; e is stored, and kept or not.
   `label` is the label within the block, or −1. The block's sum follows from `last`, which is
   the block before. */
static void block_statistics(const pyce_job *job, const element *x, int64_t first, int n, real max,
                             int label, const real *b, real *e, int kept, pyce_block *block,
                             writer *w, next_block *next, unsummed *last) {
    const normaliser norm = normalise(v_set1(max));
    *block = (pyce_block){.max = max, .pivot = pivot_of(job, x, n, max, label)};
    exp_block(x, n, &norm, e, w, next, last);
    *last = unsummed_block(block, (int)block->pivot, e, n, kept);
    if (job->soft) soft_statistics(job, x, b, first, n, max, block);
}

/* -- a row from its blocks ---------------------------------------------------------------------- */

INLINE normaliser block_normaliser(const pyce_block *block) {
    return normalise(v_set1((real)block->max));
}

/* The statistics of a row of several blocks, relative to the normaliser of its maximum row->max, which
   block `top` contains; block->scale becomes what the block's e must be multiplied by to have that
   normaliser, times BIAS_FACTOR, without which it could underflow although a probability of the block does
   not. Not inlined, so that the loop has the registers to itself in each of its callers. */
static __attribute__((noinline)) void merge_blocks(const pyce_job *job, pyce_block *blocks,
                                                   int64_t top, pyce_block *row) {
    double shift[LANES], exponent[LANES];
    const double max = row->max;
    const normaliser norm = normalise(v_set1((real)max));
    v_to_doubles(norm.shift, shift);
    v_to_doubles(norm.exponent, exponent);
    for (int64_t k = 0; k < job->blocks; k++) {
        pyce_block *block = blocks + k;
        double block_shift[LANES], block_exponent[LANES], block_e[LANES];
        const normaliser block_norm = block_normaliser(block);
        v_to_doubles(block_norm.shift, block_shift);
        v_to_doubles(block_norm.exponent, block_exponent);
        double sum = block->sum;
        if (job->pivot == PIVOT_MAX && k != top && block->pivot >= 0) {
            v_to_doubles(exp1(v_set1((real)block->max), block_norm), block_e);
            sum += block_e[0];
        }
        /* A block of nothing but −inf adds nothing, whatever its normaliser is. */
        block->scale = block->max == -INFINITE ? 0
                                               : exp_of_one(block_shift[0] - shift[0],
                                                            block_exponent[0] - exponent[0] + BIAS);
        const double product = sum * block->scale, unbias = 1 / BIAS_FACTOR;
        compensated_add(&row->sum, product * unbias, &row->sum_error);
        if (COMPENSATED) row->sum_error += block->sum_error * block->scale * unbias;
        /* The sum of a row's probabilities shows this error, which no loss or gradient does. */
        if (COMPENSATED && is_softmax(job)) {
            const double error = __builtin_fma(sum, block->scale, -product);
            row->sum_error += error - error == 0 ? error * unbias : 0;
        }
        if (!job->soft) continue;
        compensated_add(&row->soft_sum, block->soft_sum, &row->soft_sum_error);
        if (COMPENSATED) row->soft_sum_error += block->soft_sum_error;
        compensated_add(&row->soft_loss, block->soft_loss, &row->soft_loss_error);
        /* Of a sum that has overflowed, the error is not a number. */
        const double error = block->soft_loss_error;
        if (error - error == 0) row->soft_loss_error += error;
        if (block->soft_sum == 0) continue;
        /* From the block's maximum, where it is finite, to the row's. */
        const double block_max = block->max - block->max == 0 ? block->max : 0;
        const double distance = max - block_max;
        if (distance == 0) continue;
        const double further = distance * block->soft_sum;
        compensated_add(&row->soft_loss, further, &row->soft_loss_error);
        if (further - further != 0) continue;
        row->soft_loss_error += __builtin_fma(distance, block->soft_sum, -further);
        if (COMPENSATED) {
            double gap_error;
            const double gap = two_sum(max, -block_max, &gap_error);
            row->soft_loss_error += gap * block->soft_sum_error + gap_error * block->soft_sum;
        }
    }
}

/* The statistics of lane `lane` of `s` from the row's blocks, except for the numbers at the
   pivot and the label. */
static void combine_statistics(const pyce_job *job, int64_t row, pyce_block *blocks, int lane,
                               row_state *s) {
    /* The first block with the row's maximum; of a row of −inf and NaN, the first. */
    int64_t top = 0;
    double max = -INFINITE;
    for (int64_t k = 0; k < job->blocks; k++) {
        if (blocks[k].max > max) {
            max = blocks[k].max;
            top = k;
        }
    }
    pyce_block all = {.max = max};
    if (job->blocks == 1) {
        all = blocks[0];
        blocks[0].scale = BIAS_FACTOR;
    } else {
        merge_blocks(job, blocks, top, &all);
    }
    const int64_t label = label_of(job->p, row);
    int64_t pivot = -1;
    if (job->pivot == PIVOT_LABEL) pivot = label;
    if (job->pivot == PIVOT_MAX && blocks[top].pivot >= 0) {
        pivot = block_begin(job, top) + blocks[top].pivot;
    }
    s->max[lane] = max;
    s->rest[lane] = COMPENSATED ? all.sum : all.sum + all.sum_error;
    s->rest_error[lane] = all.sum_error;
    s->pivot[lane] = (double)pivot;
    s->label[lane] = (double)label;
    s->soft_sum[lane] = all.soft_sum;
    s->soft_sum_error[lane] = all.soft_sum_error;
    s->soft_loss[lane] = all.soft_loss;
    s->soft_loss_error[lane] = all.soft_loss_error;
}

/* The statistics of lane `lane` of `s` from the row's blocks. */
static void combine_blocks(const pyce_job *job, int64_t row, pyce_block *blocks, int lane,
                           row_state *s) {
    combine_statistics(job, row, blocks, lane, s);
    const pyce_problem *p = job->p;
    const element *x = logits_of(p, row);
    const int64_t stride = p->logits.class_stride;
    const int64_t pivot = (int64_t)s->pivot[lane], label = (int64_t)s->label[lane];
    s->pivot_x[lane] = pivot >= 0 ? (double)m_get(x + pivot * stride) : -INFINITE;
    s->label_x[lane] = label >= 0 ? (double)m_get(x + label * stride) : -INFINITE;
    s->pivot_b[lane] = s->label_b[lane] = 0;
    if (job->soft) {
        const int64_t outer = row / p->inner, inner = row % p->inner;
        real b;
        if (pivot >= 0) s->pivot_b[lane] = *soft_block(job, outer, inner, pivot, 1, &b);
        if (label >= 0) s->label_b[lane] = *soft_block(job, outer, inner, label, 1, &b);
    }
}

/* -- a row that is not staged -------------------------------------------------------------------------- */

/* Memory for the blocks of one row at a time. */
typedef struct {
    element in[PYCE_BLOCK + LANES], out[PYCE_BLOCK + LANES];
    real e[2][PYCE_BLOCK + CHUNK], b[2][PYCE_BLOCK + LANES];
} block_scratch;

/* Block k + 1 of the row, whose blocks lie one after the other, as the one after `block`. */
INLINE next_block block_after(const pyce_job *job, const element *block, int n, int64_t k,
                              int64_t end) {
    next_block next = {0, 0, 0};
    if (k + 1 < end && job->p->logits.class_stride == 1) {
        next.x = block + n;
        next.n = block_size(job, k + 1);
    }
    return next;
}
