/* Many classes: vectors run along the class axis. Stamped per dtype.
 *
 * A row is cut into blocks of PYCE_BLOCK classes, each with a normaliser of its own, so a block is
 * read from memory once: its maximum first, then, from the nearest cache, its exponentials. They are
 * kept in scratch (as the compute type) until the row's sum is known, and are then written, scaled.
 * Writing row i − 1 is woven into computing row i, so that stores and arithmetic overlap:
 *
 *     fused      reads each logit once, writes each gradient once
 *     forward    reads each logit once
 *     backward   reads each logit once, writes each gradient once, keeps a block
 *
 * Sums: vectors of floats are added one by one to running sums of doubles per lane (vectors of
 * doubles as well, carrying what rounding loses), the lanes as a tree at the end of the block, the
 * blocks in order. This order is the same in every dialect, in short.inc.h and, above PYCE_NARROW
 * classes, in lanes.inc.h.
 */

#define ROUND (8 * W) /* numbers in eight vectors */
/* How far in front of the block whose maximum is taken memory is fetched. */
#define AHEAD PYCE_BLOCK

/* A block of a result being written: out_c = factor·e_c − dense_factor·b_c, two classes apart. */
typedef struct {
    const pyce_job *job;
    const REAL *e, *b;
    const double *weight; /* see blend_b */
    T *out;
    REAL factor, factor_low, dense_factor, dense_factor_low;
    int n, at;
    int streaming;
    int own, label; /* within the block, or −1 */
    REAL own_grad, label_grad;
} NAME(writer);

INLINE V NAME(scaled)(const NAME(writer) * w, V e) {
    const V factor = F(set1)(w->factor);
#if W == 8
    return F(fma)(e, factor, F(mul)(e, F(set1)(w->factor_low)));
#else
    return F(mul)(e, factor);
#endif
}

INLINE vd NAME(some_weights)(const double *weight, int at, int n) {
    if (W == 16) return vd_set1(0);
    return n >= W ? vd_load(weight + at) : vd_loadn(weight + at, n, 0);
}

/* t: n numbers from w->b + at. */
INLINE V NAME(dense_scaled)(const NAME(writer) * w, V e, V t, int at, int n) {
    V low;
    const V b = NAME(blend_b)(w->job, t, NAME(some_weights)(w->weight, at, n), &low);
    return NAME(difference)(e, F(set1)(w->factor), F(set1)(w->factor_low), b, low,
                            F(set1)(w->dense_factor), F(set1)(w->dense_factor_low));
}

INLINE V NAME(written)(const NAME(writer) * w, V e, int at, int n) {
    if (!w->b) return NAME(scaled)(w, e);
    const V t = n == W ? F(load)(w->b + at) : F(loadn)(w->b + at, n, 0);
    return NAME(dense_scaled)(w, e, t, at, n);
}

INLINE V NAME(with_apart)(const NAME(writer) * w, V v, int at) {
    if (w->label >= at && w->label < at + W) {
        v = F(select)(F(lane)(w->label - at), F(set1)(w->label_grad), v);
    }
    if (w->own >= at && w->own < at + W) {
        v = F(select)(F(lane)(w->own - at), F(set1)(w->own_grad), v);
    }
    return v;
}

INLINE void NAME(write_part)(NAME(writer) * w, int n) {
    const V v = NAME(written)(w, F(loadn)(w->e + w->at, n, 0), w->at, n);
    STOREN(w->out + w->at, n, NAME(with_apart)(w, v, w->at));
    w->at += n;
}

INLINE void NAME(put)(const NAME(writer) * w, int at, V v) {
    if (w->streaming) {
        STREAM(w->out + at, v);
    } else {
        STORE(w->out + at, v);
    }
}

/* Up to `count` whole vectors. */
INLINE void NAME(write_vectors)(NAME(writer) * w, int count) {
    int at = w->at;
    const int left = (w->n - at) / W;
    const int end = at + (count > left ? left : count) * W;
    const REAL *e = w->e;
    if (w->b || (w->own >= at && w->own < end) || (w->label >= at && w->label < end)) {
        for (; at < end; at += W) {
            NAME(put)(w, at, NAME(with_apart)(w, NAME(written)(w, F(load)(e + at), at, W), at));
        }
    } else if (w->streaming) {
        for (; at < end; at += W) STREAM(w->out + at, NAME(scaled)(w, F(load)(e + at)));
    } else {
        for (; at < end; at += W) STORE(w->out + at, NAME(scaled)(w, F(load)(e + at)));
    }
    w->at = at;
}

/* Whole vectors from here to the end, or to the first that has a class apart. */
INLINE int NAME(plain_vectors)(const NAME(writer) * w) {
    int end = w->n;
    if (w->own >= w->at && w->own < end) end = w->own;
    if (w->label >= w->at && w->label < end) end = w->label;
    return (end - w->at) / W;
}

INLINE void NAME(write_head)(NAME(writer) * w) {
    if (!w->streaming) return;
    /* Streams are of whole aligned vectors. */
    const int past = (int)((uintptr_t)w->out % (W * sizeof(T)) / sizeof(T));
    const int head = past ? W - past : 0;
    if (head) NAME(write_part)(w, head < w->n ? head : w->n);
}

/* At least to `end`, or all of it. */
INLINE void NAME(write_until)(NAME(writer) * w, int end) {
    if (w->at >= end) return;
    NAME(write_vectors)(w, (end - w->at + W - 1) / W);
    if (w->at < end && w->at < w->n) NAME(write_part)(w, w->n - w->at);
}

INLINE void NAME(write_rest)(NAME(writer) * w) { NAME(write_until)(w, w->n); }

/* -- exponentials --------------------------------------------------------------------------------- */

/* `rounds` times eight vectors: as many of `w` written, if there is one, none of them with a class
   apart; then e of x, stored to `e` (which may be where those of `w` stood) if `keep`, into a sum;
   and the maximum of as many of the block that comes `next`. What comes after that is fetched on the
   way. */
INLINE F(sum) NAME(exp_rounds)(const T *x, int rounds, F(normaliser) norm, REAL *e, F(sum) sum,
                               const NAME(writer) * w, const T *next, V *max, const int keep,
                               const int dense, const int streaming) {
    V m0 = *max, m1 = m0;
    const REAL *from = w ? w->e + w->at : 0, *b = dense ? w->b + w->at : 0;
    T *to = w ? w->out + w->at : 0;
    for (; rounds > 0; rounds--) {
        V v[8];
        if (w) {
            UNROLL
            for (int j = 0; j < 8; j++) {
                const V before = F(load)(from + j * W);
                const V g = dense ? NAME(dense_scaled)(w, before, F(load)(b + j * W),
                                                       (int)(b - w->b) + j * W, W)
                                  : NAME(scaled)(w, before);
                if (streaming) {
                    STREAM(to + j * W, g);
                } else {
                    STORE(to + j * W, g);
                }
            }
            from += ROUND;
            to += ROUND;
            if (dense) b += ROUND;
        }
        UNROLL
        for (int j = 0; j < ROUND * (int)sizeof(T); j += 64) {
            __builtin_prefetch((const char *)(next + AHEAD) + j, 0, 2);
        }
        UNROLL
        for (int j = 0; j < 8; j++) v[j] = LOAD(x + j * W);
        F(exp8)(v, norm);
        if (keep) {
            UNROLL
            for (int j = 0; j < 8; j++) F(store)(e + j * W, v[j]);
            e += ROUND;
        }
        F(sum_add8)(&sum, v);
        x += ROUND;
        UNROLL
        for (int j = 0; j < 8; j += 2) {
            m0 = F(max)(LOAD(next + j * W), m0);
            m1 = F(max)(LOAD(next + j * W + W), m1);
        }
        next += ROUND;
    }
    *max = F(max)(m0, m1);
    return sum;
}
/* One function for each kind, so that the loop has the registers to itself. */
#define EXP_ROUNDS(name, keep, writes, dense, streaming)                                           \
    static __attribute__((noinline)) void NAME(name)(                                              \
        const T *x, int rounds, const F(normaliser) * norm, REAL * e, F(sum) * sum,                \
        const NAME(writer) * w, const T *next, V *max) {                                           \
        *sum = NAME(exp_rounds)(x, rounds, *norm, e, *sum, writes ? w : 0, next, max, keep, dense, \
                                streaming);                                                        \
    }
EXP_ROUNDS(exp_only, 0, 0, 0, 0)
EXP_ROUNDS(exp_keep, 1, 0, 0, 0)
EXP_ROUNDS(exp_store, 1, 1, 0, 0)
EXP_ROUNDS(exp_stream, 1, 1, 0, 1)
EXP_ROUNDS(exp_store_dense, 1, 1, 1, 0)
EXP_ROUNDS(exp_stream_dense, 1, 1, 1, 1)
#undef EXP_ROUNDS

/* Up to eight vectors with a tail or the row's own class, which is left out of the sum. */
static void NAME(exp_part)(const T *x, int n, const F(normaliser) * norm, int own, int keep,
                           REAL *e, F(sum) * sum) {
    V v[8];
    UNROLL
    for (int j = 0; j < 8; j++) {
        const int left = n - j * W;
        v[j] = F(set1)((REAL)-INFINITE); /* whose e is 0 */
        if (left > 0) v[j] = left >= W ? LOAD(x + j * W) : LOADN(x + j * W, left, (REAL)-INFINITE);
    }
    F(exp8)(v, *norm);
    UNROLL
    for (int j = 0; j < 8; j++) {
        /* Scratch has room for whole vectors. */
        if (keep && n > j * W) F(store)(e + j * W, v[j]);
        if (own >= j * W && own < (j + 1) * W) v[j] = F(drop)(F(lane)(own - j * W), v[j]);
    }
    F(sum_add8)(sum, v);
}

/* Lane by lane: the maximum of all lanes is that of n numbers. */
INLINE V NAME(vector_max)(const T *x, int n) {
    const V low = F(set1)((REAL)-INFINITE);
    V m0 = low, m1 = low, m2 = low, m3 = low;
    int c = 0;
    for (; c + 4 * W <= n; c += 4 * W) {
        m0 = F(max)(LOAD(x + c), m0);
        m1 = F(max)(LOAD(x + c + W), m1);
        m2 = F(max)(LOAD(x + c + 2 * W), m2);
        m3 = F(max)(LOAD(x + c + 3 * W), m3);
    }
    for (; c + W <= n; c += W) m0 = F(max)(LOAD(x + c), m0);
    if (c < n) m1 = F(max)(LOADN(x + c, n - c, (REAL)-INFINITE), m1);
    return F(max)(F(max)(m0, m1), F(max)(m2, m3));
}
INLINE REAL NAME(block_max)(const T *x, int n) { return F(reduce_max)(NAME(vector_max)(x, n)); }

static int NAME(find)(const T *x, int n, REAL value) {
    for (int c = 0; c < n; c += W) {
        const int left = n - c;
        /* A fill that is not found: NaN. */
        const V v = left >= W ? LOAD(x + c) : LOADN(x + c, left, (REAL)NOT_A_NUMBER);
        const int lane = F(first)(F(eq)(v, F(set1)(value)));
        if (lane >= 0) return c + lane;
    }
    return -1;
}

/* Σ b and Σ b·(max − x), terms with b = 0 counting 0 whatever x is. */
INLINE void NAME(add_dense)(const pyce_job *job, const T *x, const REAL *b, const double *weight,
                            int n, REAL max, int one, pyce_block *block) {
    F(sum) total = F(sum_zero)(), loss = F(sum_zero)();
    const V m = F(set1)(max);
    for (int c = 0; c < n; c += ROUND) {
        V t[8], low[8];
        if (!one) {
            UNROLL
            for (int j = 0; j < ROUND * (int)sizeof(REAL); j += 64) {
                __builtin_prefetch((const char *)(b + c + PYCE_BLOCK) + j, 0, 2);
            }
        }
        UNROLL
        for (int j = 0; j < 8; j++) {
            const int at = c + j * W, left = n - at;
            t[j] = low[j] = F(set1)(0);
            if (left <= 0) continue;
            const V v = left >= W ? LOAD(x + at) : LOADN(x + at, left, W == 16 && one ? 0 : max);
            if (!one) {
                t[j] = left >= W ? F(load)(b + at) : F(loadn)(b + at, left, 0);
                t[j] = NAME(blend_b)(job, t[j], NAME(some_weights)(weight, at, left), &low[j]);
            }
            F(sum_add_loss)(&loss, one, t[j], low[j], m, v);
        }
        if (!one) {
            F(sum_add8)(&total, t);
            F(sum_add_low)(&total, low);
        }
    }
    block->dense_low = 0;
    block->dense = one ? n : F(sum_total)(total, &block->dense_low);
    block->dense_loss = F(sum_total)(loss, &block->dense_loss_low);
    if (one) block->dense_loss = F(distance_one)(block->dense_loss, max, n);
}

INLINE REAL NAME(finite_or_0)(REAL x) { return x - x == 0 ? x : 0; }

INLINE F(normaliser) NAME(norm_of)(const pyce_block *block) {
    return F(normalise)(F(set1)((REAL)block->max));
}

/* The block after the one that is worked on, and its maximum. */
typedef struct {
    const T *x; /* NULL where there is none */
    int n;
    REAL max;
} NAME(next_block);

/* Exponentials of a block whose normaliser is known, while `w` (if any) is written and the maximum of
   the next block is found; their sum and what rounding that lost. */
INLINE double NAME(exp_block)(const T *x, int n, F(normaliser) norm, int own, int keep, REAL *e,
                              NAME(writer) * w, NAME(next_block) * next, double *low) {
    F(sum) sum = F(sum_zero)();
    V max = F(set1)((REAL)-INFINITE);
    int seen = 0; /* classes of the next block whose maximum is known */
    if (w) NAME(write_head)(w);
    for (int c = 0; c < n;) {
        int rounds = (n - c) / ROUND;
        if (own >= c && (own - c) / ROUND < rounds) rounds = (own - c) / ROUND;
        if (!rounds) {
            if (w) NAME(write_until)(w, c + ROUND);
            NAME(exp_part)(x + c, n - c, &norm, own - c, keep, e + c, &sum);
            if (seen == c && c + ROUND <= next->n) {
                max = F(max)(NAME(vector_max)(next->x + c, ROUND), max);
                seen += ROUND;
            }
            c += ROUND;
            continue;
        }
        const int fit = w ? NAME(plain_vectors)(w) / 8 : 0;
        if (fit) {
            if (fit < rounds) rounds = fit;
        } else if (w) {
            rounds = 1;
            NAME(write_until)(w, c + ROUND);
        }
        /* Where there is no next block, this one stands in for it. */
        V none = max;
        const T *ahead = x + c;
        if (seen == c && c + ROUND <= next->n) {
            if (c + rounds * ROUND > next->n) rounds = (next->n - c) / ROUND;
            seen += rounds * ROUND;
            ahead = next->x + c;
        }
        V *found = ahead == x + c ? &none : &max;
        if (!fit) {
            (keep ? NAME(exp_keep) : NAME(exp_only))(x + c, rounds, &norm, e + c, &sum, 0, ahead,
                                                     found);
        } else if (w->b) {
            (w->streaming ? NAME(exp_stream_dense) : NAME(exp_store_dense))(
                x + c, rounds, &norm, e + c, &sum, w, ahead, found);
        } else {
            (w->streaming ? NAME(exp_stream) : NAME(exp_store))(x + c, rounds, &norm, e + c, &sum,
                                                                w, ahead, found);
        }
        if (fit) w->at += rounds * ROUND;
        c += rounds * ROUND;
    }
    if (w) NAME(write_rest)(w);
    if (next->x) {
        max = F(max)(NAME(vector_max)(next->x + seen, next->n - seen), max);
        next->max = F(reduce_max)(max);
    }
    return F(sum_total)(sum, low);
}

/* One block's statistics, from its maximum on. `label` is the label within the block, or −1. */
INLINE void NAME(measure_block)(const pyce_job *job, const T *x, int64_t first, int n, REAL max,
                                int label, const REAL *b, int keep, REAL *e, pyce_block *block,
                                NAME(writer) * w, NAME(next_block) * next) {
    int own = -1;
    if (job->own == OWN_LABEL) own = label;
    if (job->own == OWN_MAX) own = NAME(find)(x, n, max);
    block->max = max;
    block->own = own;
    block->sum =
        NAME(exp_block)(x, n, F(normalise)(F(set1)(max)), own, keep, e, w, next, &block->sum_low);
    block->dense = block->dense_low = block->dense_loss = block->dense_loss_low = 0;
    if (job->dense == DENSE_ONE) {
        NAME(add_dense)(job, x, b, 0, n, NAME(finite_or_0)(max), 1, block);
    } else if (b) {
        const double *weight = NAME(weights_from)(job, first);
        NAME(add_dense)(job, x, b, weight, n, NAME(finite_or_0)(max), 0, block);
    }
}

/* -- a row from its blocks ---------------------------------------------------------------------- */

/* *sum += term; what rounding lost of finite numbers goes to *low. */
INLINE void NAME(add_up)(double *sum, double term, double *low) {
    const double total = *sum + term, back = total - *sum;
    const double lost = (*sum - (total - back)) + (term - back);
    if (lost == lost) *low += lost;
    *sum = total;
}

/* The statistics of lane `lane` of `s` from the row's blocks; block->exponent becomes what the
   block's e must be multiplied by to have the row's normaliser. */
static void NAME(combine)(const pyce_job *job, int64_t row, pyce_block *blocks, int lane,
                          NAME(row_set) * s) {
    const pyce_problem *p = job->p;
    const int64_t outer = row / p->inner, inner = row % p->inner;
    const T *x = (const T *)p->logits.data + NAME(offset_of)(&p->logits, outer) + inner;
    const int64_t stride = p->logits.class_stride;
    double max = -INFINITE;
    int64_t top = 0;
    for (int64_t k = 0; k < job->blocks; k++) {
        if (blocks[k].max > max) {
            max = blocks[k].max;
            top = k;
        }
    }
    double rest = 0, lost = 0, dense = 0, b_low = 0, dense_loss = 0, dense_low = 0;
    if (job->blocks == 1) {
        rest = blocks[0].sum;
        lost = W == 8 ? blocks[0].sum_low : 0;
        dense = blocks[0].dense;
        b_low = W == 8 ? blocks[0].dense_low : 0;
        dense_loss = blocks[0].dense_loss;
        dense_low = blocks[0].dense_loss_low;
        blocks[0].scale = 1;
    } else {
        double shift[W], exponent[W];
        const F(normaliser) norm = F(normalise)(F(set1)((REAL)max));
        F(to_doubles)(norm.shift, shift);
        F(to_doubles)(norm.exponent, exponent);
        for (int64_t k = 0; k < job->blocks; k++) {
            pyce_block *block = blocks + k;
            double block_shift[W], block_exponent[W], block_e[W];
            const F(normaliser) own = NAME(norm_of)(block);
            F(to_doubles)(own.shift, block_shift);
            F(to_doubles)(own.exponent, block_exponent);
            double sum = block->sum;
            if (job->own == OWN_MAX && k != top && block->own >= 0) {
                F(to_doubles)(F(exp)(F(set1)((REAL)block->max), own), block_e);
                sum += block_e[0];
            }
            /* A block of nothing but -inf adds nothing, whatever its normaliser (0 stands in). */
            block->scale = block->max == -INFINITE ? 0
                                                   : exp_of_one(block_shift[0] - shift[0],
                                                                block_exponent[0] - exponent[0]);
            const double term = sum * block->scale;
            const double total = rest + term, back = total - rest;
            lost += (rest - (total - back)) + (term - back);
            if (W == 8) lost += block->sum_low * block->scale;
            rest = total;
            const double from = block->max - block->max == 0 ? block->max : 0;
            NAME(add_up)(&dense, block->dense, &b_low);
            if (W == 8) b_low += block->dense_low;
            NAME(add_up)(&dense_loss, block->dense_loss, &dense_low);
            /* Of a sum that has overflowed, what was lost is no number. */
            const double low = block->dense_loss_low;
            if (low - low == 0) dense_low += low;
            if (block->dense != 0) {
                const double further = (max - from) * block->dense;
                NAME(add_up)(&dense_loss, further, &dense_low);
                if (further - further == 0) {
                    dense_low += __builtin_fma(max - from, block->dense, -further);
                    double gap = max, gap_low = 0;
                    NAME(add_up)(&gap, -from, &gap_low);
                    if (W == 8) dense_low += gap * block->dense_low + gap_low * block->dense;
                }
            }
        }
    }
    const int64_t label = NAME(label_of)(p, row);
    int64_t own = -1;
    if (job->own == OWN_LABEL) own = label;
    if (job->own == OWN_MAX && blocks[top].own >= 0) own = top * PYCE_BLOCK + blocks[top].own;
    s->max[lane] = max;
    if (W == 16) rest += lost;
    s->rest[lane] = rest;
    s->rest_low[lane] = lost;
    s->own[lane] = (double)own;
    s->label[lane] = (double)label;
    s->own_x[lane] = own >= 0 ? (double)GET(x + own * stride) : -INFINITE;
    s->label_x[lane] = label >= 0 ? (double)GET(x + label * stride) : -INFINITE;
    s->dense[lane] = dense;
    s->dense_low[lane] = W == 8 ? b_low : 0;
    s->dense_loss[lane] = dense_loss;
    s->dense_loss_low[lane] = W == 8 ? dense_low : 0;
    s->own_b[lane] = s->label_b[lane] = 0;
    if (job->dense) {
        REAL one;
        if (own >= 0) s->own_b[lane] = *NAME(dense_block)(job, outer, inner, own, 1, &one);
        if (label >= 0) s->label_b[lane] = *NAME(dense_block)(job, outer, inner, label, 1, &one);
    }
}

/* Lanes that stand for no row, or for an ignored one. */
static void NAME(clear_lane)(int lane, NAME(row_set) * s) {
    s->max[lane] = s->rest[lane] = s->rest_low[lane] = s->own_x[lane] = s->label_x[lane] = 0;
    s->own_b[lane] = s->label_b[lane] = s->dense[lane] = s->dense_loss[lane] = 0;
    s->dense_low[lane] = s->dense_loss_low[lane] = 0;
    s->own[lane] = s->label[lane] = -1;
}

INLINE int NAME(within)(int64_t c, int64_t first, int n) {
    return c >= first && c < first + n ? (int)(c - first) : -1;
}

/* The writer of one block of a settled row. `e` is changed where the factor is too small for the
   compute type: part of it moves into e. */
INLINE NAME(writer)
    NAME(writer_of)(const pyce_job *job, const NAME(row_set) * s, int lane, const pyce_block *block,
                    int64_t first, int n, REAL *e, const REAL *b, T *out) {
    double factor = s->factor[lane] * block->scale;
    double low = W == 8 ? s->factor_low[lane] * block->scale : 0;
    const double least = W == 8 ? 0x1p-1021 : 0x1p-125;
    if (__builtin_fabs(factor) < least && factor != 0) {
        factor = s->factor[lane] * BIAS_FACTOR * block->scale;
        low *= BIAS_FACTOR;
        for (int c = 0; c < n; c++) e[c] *= (REAL)(1 / BIAS_FACTOR);
    }
    const int apart = job->p->operation != PYCE_SOFTMAX;
    NAME(writer)
    w = {
        .job = job,
        .e = e,
        .b = b,
        .weight = NAME(weights_from)(job, first),
        .out = out,
        .n = n,
        .at = 0,
        .streaming = job->streaming,
        .own = apart ? NAME(within)((int64_t)s->own[lane], first, n) : -1,
        .label = apart && job->dense ? NAME(within)((int64_t)s->label[lane], first, n) : -1,
        .own_grad = (REAL)s->own_grad[lane],
        .label_grad = job->dense ? (REAL)s->label_grad[lane] : 0,
    };
    w.factor = NAME(in_parts)(factor, low, &w.factor_low);
    if (job->dense) {
        const double dense_low = W == 8 ? s->dense_factor_low[lane] : 0;
        w.dense_factor = NAME(in_parts)(s->dense_factor[lane], dense_low, &w.dense_factor_low);
    }
    return w;
}

static void NAME(scatter)(const T *from, int n, T *to, int64_t stride) {
    for (int c = 0; c < n; c++) to[c * stride] = from[c];
}

static void NAME(zero_row)(const pyce_job *job, int64_t row) {
    const pyce_operand *g = &job->p->result;
    T *out = (T *)g->data + NAME(offset_of)(g, row);
    for (int64_t c = 0; c < job->p->classes; c++) out[c * g->class_stride] = 0;
}

INLINE int NAME(block_size)(const pyce_job *job, int64_t k) {
    const int64_t left = job->p->classes - k * PYCE_BLOCK;
    return left < PYCE_BLOCK ? (int)left : PYCE_BLOCK;
}

/* -- rows whose exponentials are not kept ---------------------------------------------------------- */

typedef struct {
    T in[PYCE_BLOCK + W], out[PYCE_BLOCK + W];
    REAL e[2][PYCE_BLOCK + ROUND], b[2][PYCE_BLOCK + W];
} NAME(block_scratch);

static void NAME(wide_measure)(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                               pyce_block *blocks, void *scratch) {
    NAME(block_scratch) *room = scratch;
    const pyce_operand *a = &job->p->logits;
    const T *x = (const T *)a->data + NAME(offset_of)(a, row);
    const int64_t label = NAME(label_of)(job->p, row);
    if (!NAME(is_live)(job->p, row)) return;
    NAME(next_block) next = {0, 0, 0};
    for (int64_t k = first; k < last; k++) {
        const int n = NAME(block_size)(job, k);
        const int64_t at = k * PYCE_BLOCK;
        const T *block = NAME(gather)(x + at * a->class_stride, a->class_stride, n, room->in);
        const REAL *b =
            job->dense ? NAME(dense_block)(job, row, 0, at, n, room->b[0]) : (const REAL *)0;
        const REAL max = next.x == block ? next.max : NAME(block_max)(block, n);
        next.x = 0;
        next.n = 0;
        if (k + 1 < last && a->class_stride == 1) {
            next.x = block + n;
            next.n = NAME(block_size)(job, k + 1);
        }
        NAME(measure_block)(job, block, at, n, max, NAME(within)(label, at, n), b, 0, room->e[0],
                            blocks + k, 0, &next);
    }
}

static void NAME(settle_row)(const pyce_job *job, int64_t row, pyce_block *blocks,
                             NAME(row_set) * s) {
    for (int i = 0; i < W; i++) NAME(clear_lane)(i, s);
    if (NAME(is_live)(job->p, row)) NAME(combine)(job, row, blocks, 0, s);
    s->row = row;
    s->n = 1;
    NAME(settle_rows)(job, s, 1);
}

/* out = (x − max) − log for log-softmax. */
INLINE void NAME(write_log)(const T *x, int n, REAL max, double log, double log_low, T *out) {
    const V m = F(set1)(max), l = F(set1)((REAL)log), low = F(set1)((REAL)log_low);
    int c = 0;
    for (; c + W <= n; c += W) STORE(out + c, NAME(log_softmax)(LOAD(x + c), m, l, low));
    if (c < n) STOREN(out + c, n - c, NAME(log_softmax)(LOADN(x + c, n - c, 0), m, l, low));
}

static void NAME(wide_write)(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                             const pyce_block *blocks, const void *settled, void *scratch) {
    const NAME(row_set) *s = settled;
    NAME(block_scratch) *room = scratch;
    const pyce_operand *a = &job->p->logits, *g = &job->p->result;
    const T *x = (const T *)a->data + NAME(offset_of)(a, row);
    T *result = (T *)g->data + NAME(offset_of)(g, row);
    const int live = NAME(is_live)(job->p, row);
    for (int64_t k = first; k < last; k++) {
        const int n = NAME(block_size)(job, k);
        const int64_t at = k * PYCE_BLOCK;
        T *out = g->class_stride == 1 ? result + at : room->out;
        if (!live) {
            for (int c = 0; c < n; c++) out[c] = 0;
        } else {
            const T *block = NAME(gather)(x + at * a->class_stride, a->class_stride, n, room->in);
            if (job->p->operation == PYCE_LOG_SOFTMAX) {
                NAME(write_log)(block, n, (REAL)s->max[0], s->log[0], W == 8 ? s->log_low[0] : 0,
                                out);
            } else {
                const REAL *b = job->dense ? NAME(dense_block)(job, row, 0, at, n, room->b[0])
                                           : (const REAL *)0;
                double low;
                NAME(next_block) next = {0, 0, 0};
                NAME(exp_block)(block, n, NAME(norm_of)(blocks + k), -1, 1, room->e[0], 0, &next,
                                &low);
                NAME(writer) w = NAME(writer_of)(job, s, 0, blocks + k, at, n, room->e[0], b, out);
                NAME(write_head)(&w);
                NAME(write_rest)(&w);
            }
        }
        if (g->class_stride != 1)
            NAME(scatter)(out, n, result + at * g->class_stride, g->class_stride);
    }
}

/* -- the backward from a saved lse ---------------------------------------------------------------- */

/* Whether the lse can take the maximum's place as normaliser, which makes the backward one pass. It
   must be known well enough: for float results, a double holds log S well enough up to 2^20; for
   double results it never does, and the row's sum is computed anew. */
INLINE int NAME(one_pass)(const pyce_job *job, int64_t row) {
    const pyce_problem *p = job->p;
    if (W == 8 || p->operation != PYCE_BACKWARD || job->dense) return 0;
    if (p->classes <= PYCE_NARROW) return 0; /* in lanes, where the sum costs next to nothing */
    return p->lse[row] >= -0x1p20 && p->lse[row] <= 0x1p20 && NAME(is_live)(p, row);
}

/* What e with the normaliser of the lse must be multiplied by: to be p, and to be the gradient. */
INLINE double NAME(lse_scale)(const pyce_problem *p, int64_t row) {
    double shift[W], exponent[W];
    const F(normaliser) norm = F(normalise)(F(set1)((REAL)p->lse[row]));
    F(to_doubles)(norm.shift, shift);
    F(to_doubles)(norm.exponent, exponent);
    return exp_of_one(shift[0] - p->lse[row], exponent[0]);
}

INLINE double NAME(row_scale)(const pyce_job *job, int64_t row) {
    const pyce_problem *p = job->p;
    double scale = job->grad_scale;
    if (p->weight) scale *= p->weight[NAME(label_of)(p, row)];
    if (p->sample_weight) scale *= p->sample_weight[row];
    if (p->grad_losses) scale *= p->grad_losses[row];
    return scale;
}

/* The gradient of blocks first…last but for the label, and their sums without it. */
static void NAME(backward_blocks)(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                                  pyce_block *blocks, NAME(block_scratch) * room) {
    const pyce_problem *p = job->p;
    const pyce_operand *a = &p->logits, *g = &p->result;
    const T *x = (const T *)a->data + NAME(offset_of)(a, row);
    T *result = (T *)g->data + NAME(offset_of)(g, row);
    const int64_t label = NAME(label_of)(p, row);
    const F(normaliser) norm = F(normalise)(F(set1)((REAL)p->lse[row]));
    NAME(row_set) s;
    s.factor[0] = NAME(row_scale)(job, row) * NAME(lse_scale)(p, row);
    s.own[0] = s.label[0] = -1;
    s.own_grad[0] = 0;
    const pyce_block unit = {.scale = 1};
    NAME(writer) w, *before = 0;
    NAME(next_block) next = {0, 0, 0};
    for (int64_t k = first; k < last; k++) {
        const int n = NAME(block_size)(job, k);
        const int64_t at = k * PYCE_BLOCK;
        const T *block = NAME(gather)(x + at * a->class_stride, a->class_stride, n, room->in);
        REAL *e = room->e[k & 1];
        double low;
        blocks[k].sum =
            NAME(exp_block)(block, n, norm, NAME(within)(label, at, n), 1, e, before, &next, &low);
        T *out = g->class_stride == 1 ? result + at : room->out;
        w = NAME(writer_of)(job, &s, 0, &unit, at, n, e, 0, out);
        before = &w;
        if (g->class_stride != 1) {
            NAME(write_head)(&w);
            NAME(write_rest)(&w);
            NAME(scatter)(out, n, result + at * g->class_stride, g->class_stride);
            before = 0;
        }
    }
    if (before) {
        NAME(write_head)(before);
        NAME(write_rest)(before);
    }
}

/* The gradient at the label of any row, from the sums of all its blocks. */
static void NAME(backward_label)(const pyce_job *job, int64_t row, const pyce_block *blocks) {
    const pyce_problem *p = job->p;
    const int64_t outer = row / p->inner, inner = row % p->inner;
    double rest = 0, lost = 0;
    for (int64_t k = 0; k < job->blocks; k++) {
        const double total = rest + blocks[k].sum, back = total - rest;
        lost += (rest - (total - back)) + (blocks[k].sum - back);
        rest = total;
    }
    const double others = (rest + lost) * NAME(lse_scale)(p, row);
    const double grad = 0.0 - NAME(row_scale)(job, row) * others;
    T *result = (T *)p->result.data + NAME(offset_of)(&p->result, outer) + inner;
    const int64_t at = NAME(label_of)(p, row) * p->result.class_stride;
    if (job->streaming) memory_fence();
    STOREN(result + at, 1, F(set1)((REAL)grad));
}

/* -- rows that threads share ------------------------------------------------------------------------ */

static void NAME(share_measure)(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                                pyce_block *blocks, void *scratch) {
    if (NAME(one_pass)(job, row)) {
        NAME(backward_blocks)(job, row, first, last, blocks, scratch);
        if (job->streaming) memory_fence();
    } else {
        NAME(wide_measure)(job, row, first, last, blocks, scratch);
    }
}

static void NAME(share_settle)(const pyce_job *job, int64_t row, pyce_block *blocks, void *settled,
                               double *losses, double *sums) {
    _Static_assert(sizeof(NAME(row_set)) <= PYCE_SETTLED, "room for a settled row");
    NAME(row_set) *s = settled;
    if (NAME(one_pass)(job, row)) {
        NAME(backward_label)(job, row, blocks);
        return;
    }
    NAME(settle_row)(job, row, blocks, s);
    losses[0] = s->loss[0];
    /* So many classes make tiles of one row. */
    NAME(reduce_tile)(job, row, row + 1, losses, sums);
}

static void NAME(share_write)(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                              const pyce_block *blocks, const void *settled, void *scratch) {
    if (NAME(one_pass)(job, row)) return;
    NAME(wide_write)(job, row, first, last, blocks, settled, scratch);
    if (job->streaming) memory_fence();
}

/* -- rows of one thread -------------------------------------------------------------------------- */

INLINE int64_t NAME(kept_classes)(const pyce_job *job) {
    return (job->p->classes + 2 * ROUND - 1) / ROUND * ROUND;
}

static size_t NAME(wide_scratch)(const pyce_job *job) {
    size_t bytes = sizeof(NAME(block_scratch)) + 2 * (size_t)job->blocks * sizeof(pyce_block);
    const int forward = job->p->operation == PYCE_FORWARD || job->p->operation == PYCE_LOGSUMEXP;
    if (!job->recompute && !forward) bytes += (size_t)NAME(kept_classes)(job) * sizeof(REAL);
    return bytes + 256;
}

/* A row that is computed now, or was before and is to be written. */
typedef struct {
    int64_t row; /* −1 for none */
    REAL *e;
    pyce_block *blocks;
    NAME(row_set) set;
} NAME(wide_row);

/* Computes `now` while `before` is written, block by block. */
INLINE void NAME(next_row)(const pyce_job *job, NAME(wide_row) * now, NAME(wide_row) * before,
                           int keep, NAME(block_scratch) * room) {
    const pyce_problem *p = job->p;
    const pyce_operand *a = &p->logits, *g = &p->result;
    const int compute = now->row >= 0 && NAME(is_live)(p, now->row);
    int write = keep && before->row >= 0;
    if (write && !NAME(is_live)(p, before->row)) {
        NAME(zero_row)(job, before->row);
        write = 0;
    }
    const T *x = 0;
    T *result = 0;
    int64_t label = -1;
    NAME(next_block) next = {0, 0, 0};
    if (compute) {
        x = (const T *)a->data + NAME(offset_of)(a, now->row);
        label = NAME(label_of)(p, now->row);
    }
    if (write) result = (T *)g->data + NAME(offset_of)(g, before->row);
    for (int64_t k = 0; k < job->blocks; k++) {
        const int n = NAME(block_size)(job, k);
        const int64_t at = k * PYCE_BLOCK;
        NAME(writer) w, *writing = 0;
        if (write) {
            const REAL *b = job->dense ? NAME(dense_block)(job, before->row, 0, at, n, room->b[1])
                                       : (const REAL *)0;
            T *out = g->class_stride == 1 ? result + at : room->out;
            w = NAME(writer_of)(job, &before->set, 0, before->blocks + k, at, n, before->e + at, b,
                                out);
            writing = &w;
        }
        if (compute) {
            const T *block = NAME(gather)(x + at * a->class_stride, a->class_stride, n, room->in);
            const REAL *b = job->dense ? NAME(dense_block)(job, now->row, 0, at, n, room->b[0])
                                       : (const REAL *)0;
            REAL *e = keep ? now->e + at : room->e[0];
            const REAL max = next.x == block ? next.max : NAME(block_max)(block, n);
            next.x = 0;
            next.n = 0;
            if (k + 1 < job->blocks && a->class_stride == 1) {
                next.x = block + n;
                next.n = NAME(block_size)(job, k + 1);
            }
            NAME(measure_block)(job, block, at, n, max, NAME(within)(label, at, n), b, keep, e,
                                now->blocks + k, writing, &next);
        } else if (writing) {
            NAME(write_head)(writing);
            NAME(write_rest)(writing);
        }
        if (write && g->class_stride != 1) {
            NAME(scatter)(room->out, n, result + at * g->class_stride, g->class_stride);
        }
    }
    if (now->row >= 0) NAME(settle_row)(job, now->row, now->blocks, &now->set);
}

static void NAME(wide_rows)(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                            double *sums) {
    const pyce_problem *p = job->p;
    char *at = scratch;
    NAME(block_scratch) *room = NAME(carve)(&at, sizeof *room);
    const int keep = p->operation != PYCE_FORWARD && p->operation != PYCE_LOGSUMEXP;
    /* Rows that are worked on alone: x itself is needed again, or rows differ in kind. */
    const int single =
        p->operation == PYCE_LOG_SOFTMAX || (p->operation == PYCE_BACKWARD && W == 16);
    double losses[PYCE_TILE];
    NAME(wide_row) rows[2];
    REAL *e = 0;
    if (keep && !job->recompute && !single) {
        e = NAME(carve)(&at, (size_t)NAME(kept_classes)(job) * sizeof(REAL));
    }
    for (int i = 0; i < 2; i++) {
        rows[i].row = -1;
        rows[i].blocks = NAME(carve)(&at, (size_t)job->blocks * sizeof(pyce_block));
        rows[i].e = e; /* of both: each is written where the other was read just before */
    }
    int turn = 0;
    for (int64_t row = begin; row < end; row++) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        NAME(wide_row) *now = rows + turn, *before = rows + 1 - turn;
        losses[row - tile] = 0;
        if (NAME(one_pass)(job, row)) {
            NAME(backward_blocks)(job, row, 0, job->blocks, now->blocks, room);
            NAME(backward_label)(job, row, now->blocks);
        } else if (job->recompute || single) {
            NAME(wide_measure)(job, row, 0, job->blocks, now->blocks, room);
            NAME(settle_row)(job, row, now->blocks, &now->set);
            if (keep) NAME(wide_write)(job, row, 0, job->blocks, now->blocks, &now->set, room);
            losses[row - tile] = now->set.loss[0];
        } else {
            now->row = row;
            if (keep) {
                NAME(next_row)(job, now, before, 1, room);
            } else {
                NAME(next_row)(job, now, before, 0, room);
            }
            losses[row - tile] = now->set.loss[0];
            turn = 1 - turn;
        }
        if (row + 1 == tile_end) NAME(reduce_tile)(job, tile, tile_end, losses, sums);
    }
    NAME(wide_row) *now = rows + turn, *before = rows + 1 - turn;
    now->row = -1;
    if (keep && before->row >= 0) NAME(next_row)(job, now, before, 1, room);
    if (job->streaming) memory_fence();
}
