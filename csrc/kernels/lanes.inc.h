/* Rows in lanes: each vector holds one class of W rows. Stamped per dtype.
 *
 * For few classes, whose rows are loaded as vectors and transposed in registers; and for a class
 * axis that is not the last, where the rows of neighbouring positions lie side by side already. A
 * tile of W rows and up to PYCE_BLOCK classes is loaded, worked on in place, and stored:
 *
 *     fused, forward, backward    read each logit once, write each gradient once
 *                                 (above PYCE_BLOCK classes: read twice, nothing is kept)
 *
 * Up to PYCE_NARROW classes a row's sum is taken in groups of eight classes in order; above, in the
 * order of wide.inc.h, so that a row has the same bytes wherever its class axis is.
 */

typedef struct {
    REAL *x, *b; /* tiles: class by class, one row per lane; x becomes e */
    REAL *coefficients;
    T *stage; /* results of a batch on their way past the caches */
} NAME(lane_scratch);

#if W == 16
/* For tiny rows that lie one after the other: which lanes of class c come from the k-th of the
   vectors that 16 rows fill, and back; see vf_merge. */
typedef struct {
    int32_t sort[PYCE_TINY][PYCE_TINY][W], unsort[PYCE_TINY][PYCE_TINY][W];
} NAME(lane_order);

static void NAME(find_order)(int classes, NAME(lane_order) * order) {
    for (int c = 0; c < classes; c++) {
        for (int k = 0; k < classes; k++) {
            for (int i = 0; i < W; i++) {
                const int from = i * classes + c, to = k * W + i;
                order->sort[c][k][i] = from / W == k ? W + from % W : i;
                order->unsort[k][c][i] = to % classes == c ? W + to / classes : i;
            }
        }
    }
}
#endif

/* Where W rows lie: rows first…first+n−1 of the problem. */
typedef struct {
    int64_t row;
    int n;
    int apart;            /* rows lie apart (inner == 1), else side by side */
    int64_t outer, inner; /* of the first */
    int all_live;         /* no row is ignored; else those that aren't: */
    int live[W];
    const pyce_operand *to; /* where results go: the problem's, or one of the same layout */
    V label;                /* as numbers; −1 where none */
#if W == 16
    const NAME(lane_order) * order; /* NULL where rows are not tiny */
#endif
} NAME(lane_rows);

/* Whether lane i stands for a row that counts. */
INLINE int NAME(lives)(const NAME(lane_rows) * rows, int i) {
    return i < rows->n && (rows->all_live || rows->live[i]);
}

INLINE void NAME(load_tile)(const T *x, const pyce_operand *a, const NAME(lane_rows) * rows,
                            int64_t first, int n, REAL *tile) {
    if (!rows->apart) {
        x += NAME(offset_of)(a, rows->outer) + first * a->class_stride + rows->inner;
        if (rows->n == W) {
            for (int c = 0; c < n; c++) F(store)(tile + c * W, LOAD(x + c * a->class_stride));
        } else {
            for (int c = 0; c < n; c++) {
                F(store)(tile + c * W, LOADN(x + c * a->class_stride, rows->n, 0));
            }
        }
        return;
    }
#if W == 16
    if (rows->order && rows->n == W && a->class_stride == 1 && !a->offsets &&
        a->outer_stride == n) {
        x += rows->row * n;
        for (int c = 0; c < n; c++) {
            V v = F(set1)(0);
            for (int k = 0; k < n; k++) v = F(merge)(v, rows->order->sort[c][k], LOAD(x + k * W));
            F(store)(tile + c * W, v);
        }
        return;
    }
#endif
    const T *row[W];
    T packed[W];
    x += first * a->class_stride;
    /* The last row stands in for those past the end. */
    if (a->offsets) {
        const int64_t *offset = a->offsets + rows->row;
        for (int i = 0; i < W; i++) row[i] = x + offset[i < rows->n ? i : rows->n - 1];
    } else {
        x += rows->row * a->outer_stride;
        for (int i = 0; i < W; i++) row[i] = x + (i < rows->n ? i : rows->n - 1) * a->outer_stride;
    }
    for (int c = 0; c < n; c += W) {
        const int width = n - c < W ? n - c : W;
        V v[W];
        if (a->class_stride != 1) {
            for (int i = 0; i < W; i++) {
                NAME(gather)(row[i] + c * a->class_stride, a->class_stride, width, packed);
                v[i] = LOADN(packed, width, 0);
            }
        } else if (width == W) {
            UNROLL
            for (int i = 0; i < W; i++) v[i] = LOAD(row[i] + c);
        } else {
            UNROLL
            for (int i = 0; i < W; i++) v[i] = LOADN(row[i] + c, width, 0);
        }
        F(transpose)(v);
        UNROLL
        for (int j = 0; j < width; j++) F(store)(tile + (c + j) * W, v[j]);
    }
}

INLINE void NAME(store_tile)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first,
                             int n, const REAL *tile) {
    const pyce_operand *g = rows->to;
    T *out = g->data;
    if (!rows->apart) {
        out += NAME(offset_of)(g, rows->outer) + first * g->class_stride + rows->inner;
        const size_t size = W * sizeof(T);
        if (rows->n == W && job->streaming && (uintptr_t)out % size == 0 &&
            (size_t)g->class_stride * sizeof(T) % size == 0) {
            for (int c = 0; c < n; c++) STREAM(out + c * g->class_stride, F(load)(tile + c * W));
        } else if (rows->n == W) {
            for (int c = 0; c < n; c++) STORE(out + c * g->class_stride, F(load)(tile + c * W));
        } else {
            for (int c = 0; c < n; c++) {
                STOREN(out + c * g->class_stride, rows->n, F(load)(tile + c * W));
            }
        }
        return;
    }
#if W == 16
    if (rows->order && rows->n == W && g->class_stride == 1 && !g->offsets &&
        g->outer_stride == n) {
        out += rows->row * n;
        for (int k = 0; k < n; k++) {
            V v = F(set1)(0);
            for (int c = 0; c < n; c++) {
                v = F(merge)(v, rows->order->unsort[k][c], F(load)(tile + c * W));
            }
            STORE(out + k * W, v);
        }
        return;
    }
#endif
    for (int c = 0; c < n; c += W) {
        const int width = n - c < W ? n - c : W;
        V v[W];
        UNROLL
        for (int j = 0; j < W; j++) v[j] = F(load)(tile + (c + (j < width ? j : 0)) * W);
        F(transpose)(v);
        if (rows->n == W && g->class_stride == 1 && !g->offsets) {
            T *to = out + rows->row * g->outer_stride + first + c;
            if (width == W) {
                UNROLL
                for (int i = 0; i < W; i++) STORE(to + i * g->outer_stride, v[i]);
            } else {
                UNROLL
                for (int i = 0; i < W; i++) STOREN(to + i * g->outer_stride, width, v[i]);
            }
            continue;
        }
        for (int i = 0; i < rows->n; i++) {
            T *to = out + NAME(offset_of)(g, rows->row + i) + (first + c) * g->class_stride;
            T packed[W];
            STOREN(packed, width, v[i]);
            for (int j = 0; j < width; j++) to[j * g->class_stride] = packed[j];
        }
    }
}

/* Factors b of a tile's classes, and the step from class to class: 0 lanes where all rows share. */
INLINE int NAME(load_dense)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first, int n,
                            NAME(lane_scratch) * room, const REAL **b) {
    const pyce_problem *p = job->p;
    if (job->dense != DENSE_PROBS) {
        *b = NAME(dense_block)(job, 0, 0, first, n, room->coefficients);
        return 0;
    }
    *b = room->b;
    if (p->probs_dtype == p->dtype && (W == 8 || !job->blended)) {
        NAME(load_tile)(p->probs.data, &p->probs, rows, first, n, room->b);
        return W;
    }
    for (int i = 0; i < W; i++) {
        const int r = i < rows->n ? i : rows->n - 1;
        const int64_t outer = rows->apart ? rows->row + r : rows->outer;
        const int64_t inner = rows->apart ? 0 : rows->inner + r;
        const REAL *from = NAME(dense_block)(job, outer, inner, first, n, room->coefficients);
        for (int c = 0; c < n; c++) room->b[c * W + i] = from[c];
    }
    return W;
}

/* b of class c of a tile whose class weights are `weight`. */
INLINE V NAME(tile_b)(const pyce_job *job, const REAL *b, int step, const double *weight, int c,
                      V *low) {
    const V t = step ? F(load)(b + c * W) : F(set1)(b[c]);
    return NAME(blend_b)(job, t, vd_set1(W == 8 ? weight[c] : 0), low);
}

INLINE V NAME(term)(const REAL *tile, V own, int c) {
    return F(drop)(F(eq)(own, F(set1)((REAL)c)), F(load)(tile + c * W));
}

/* Classes c, c + stride, … (eight at most) into a running sum: few classes in their order, many in
   that of wide.inc.h. */
INLINE void NAME(add_terms)(const pyce_job *job, F(sum) * sum, int kind, const REAL *tile,
                            const REAL *b, int step, const double *weight, V own_or_max, int c,
                            int stride, int n) {
    if (kind == SUM_LOSS || kind == SUM_DISTANCE) {
        for (int j = 0; j < 8 && c + j * stride < n; j++) {
            const int at = c + j * stride;
            V low;
            const V t = NAME(tile_b)(job, b, step, weight, at, &low);
            F(sum_add_loss)(sum, kind == SUM_DISTANCE, t, low, own_or_max, F(load)(tile + at * W));
        }
        return;
    }
    V v[8], low[8];
    UNROLL
    for (int j = 0; j < 8; j++) {
        const int at = c + j * stride;
        v[j] = low[j] = F(set1)(0);
        if (at >= n) continue;
        v[j] = kind == SUM_B ? NAME(tile_b)(job, b, step, weight, at, &low[j])
                             : NAME(term)(tile, own_or_max, at);
    }
    if (stride == 1) {
        F(sum_add_each)(sum, v, n - c);
    } else {
        F(sum_add8)(sum, v);
    }
    if (kind == SUM_B) F(sum_add_low)(sum, low);
}

INLINE void NAME(sum_tile)(const pyce_job *job, int kind, const REAL *tile, const REAL *b, int step,
                           const double *weight, V own_or_max, int n, double sums[W],
                           double low[W]) {
    if (job->p->classes <= PYCE_NARROW) {
        F(sum) sum = F(sum_zero)();
        for (int c = 0; c < n; c += 8) {
            NAME(add_terms)(job, &sum, kind, tile, b, step, weight, own_or_max, c, 1, n);
        }
        F(sum_lanes)(sum, sums, low);
        return;
    }
    /* As along a row: W running sums, class c belonging to the (c mod W)-th. */
    F(sum) along[W];
    for (int l = 0; l < W; l++) along[l] = F(sum_zero)();
    for (int c = 0; c < n; c += ROUND) {
        for (int l = 0; l < W; l++) {
            NAME(add_terms)(job, &along[l], kind, tile, b, step, weight, own_or_max, c + l, W, n);
        }
    }
    vd part[2][8];
    for (int l = 0; l < 8; l++) {
#if W == 16
        part[0][l] = vd_add(along[l].lo, along[l + 8].lo);
        part[1][l] = vd_add(along[l].hi, along[l + 8].hi);
#else
        part[0][l] = along[l].sum;
        part[1][l] = along[l].lost;
#endif
    }
#if W == 16
    vd_store(sums, vd_tree(part[0]));
    vd_store(sums + 8, vd_tree(part[1]));
#else
    vd lost;
    vd_store(sums, vd_fold(part[0], part[1], &lost));
    vd_store(low, lost);
#endif
}

/* x of the tile becomes e; the sum of those that are not the row's own, per lane; x of the own. */
INLINE V NAME(exp_tile)(const pyce_job *job, REAL *tile, int n, F(normaliser) norm, V own,
                        double sums[W], double low[W]) {
    V own_x = F(set1)((REAL)-INFINITE);
    if (job->p->classes > PYCE_NARROW) {
        for (int c = 0; c < n; c++) {
            const V x = F(load)(tile + c * W);
            own_x = F(select)(F(eq)(own, F(set1)((REAL)c)), x, own_x);
            F(store)(tile + c * W, F(exp)(x, norm));
        }
        NAME(sum_tile)(job, SUM_E, tile, 0, 0, 0, own, n, sums, low);
        return own_x;
    }
    /* The same sum as sum_tile's, in the loop of the exponentials. */
    F(sum) sum = F(sum_zero)();
    V from_here = own; /* the own class, counted from c */
    for (int c = 0; c < n; c += 8) {
        V v[8];
        UNROLL
        for (int j = 0; j < 8; j++) {
            v[j] = c + j < n ? F(load)(tile + (c + j) * W) : F(set1)(0);
        }
        F(exp_some)(v, n - c, norm);
        UNROLL
        for (int j = 0; j < 8; j++) {
            if (c + j >= n) continue;
            const VM mine = F(eq)(from_here, F(set1)((REAL)j));
            own_x = F(select)(mine, F(load)(tile + (c + j) * W), own_x);
            F(store)(tile + (c + j) * W, v[j]);
            v[j] = F(drop)(mine, v[j]);
        }
        F(sum_add_each)(&sum, v, n - c);
        from_here = F(sub)(from_here, F(set1)(8));
    }
    F(sum_lanes)(sum, sums, low);
    return own_x;
}

/* Tiles that are worked on at a time, so that there are enough rows to settle: what fits in L1. */
#define BATCH 8

INLINE int NAME(in_batches)(const pyce_job *job) {
    const int lse_will_do = W == 16 && job->p->operation == PYCE_BACKWARD && !job->dense;
    return job->blocks == 1 && !(lse_will_do && job->p->classes > PYCE_NARROW);
}

INLINE int NAME(batch_of)(const pyce_job *job) {
    const int64_t fit = 512 / job->p->classes;
    if (!NAME(in_batches)(job)) return 1;
    return fit < 1 ? 1 : fit > BATCH ? BATCH : (int)fit;
}

/* Rows that lie side by side are as many streams as classes, more than a processor follows by itself:
   the lines of the next batch, and those the result of this one goes to, are fetched here. Rows one
   after the other are fetched some way ahead, farther than a processor does while it computes. */
#define FETCH_AHEAD 8192
INLINE void NAME(fetch)(const pyce_job *job, const NAME(lane_rows) * rows, int n, int keep) {
    const pyce_operand *a = &job->p->logits, *g = &job->p->result;
    const T *x = (const T *)a->data + NAME(offset_of)(a, rows->outer) + rows->inner;
    if (rows->apart) {
        if (a->class_stride != 1 || a->offsets) return;
        const char *next = (const char *)x + FETCH_AHEAD;
        const int64_t bytes = rows->n * a->outer_stride * (int64_t)sizeof(T);
        for (int64_t i = 0; i < bytes && i < 4096; i += 64) __builtin_prefetch(next + i, 0, 3);
        return;
    }
    const int64_t ahead = NAME(batch_of)(job) * W;
    for (int c = 0; c < n; c++) __builtin_prefetch(x + c * a->class_stride + ahead, 0, 3);
    if (!keep || job->streaming) return;
    const T *out = (const T *)g->data + NAME(offset_of)(g, rows->outer) + rows->inner;
    for (int c = 0; c < n; c++) __builtin_prefetch(out + c * g->class_stride, 1, 3);
}

/* Loads one block of the tile; its maximum, lane by lane. */
INLINE V NAME(load_max)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first, int n,
                        REAL *x) {
    NAME(load_tile)(job->p->logits.data, &job->p->logits, rows, first, n, x);
    if (!rows->all_live) {
        /* What an ignored row holds must not matter. */
        for (int i = 0; i < rows->n; i++) {
            if (rows->live[i]) continue;
            for (int c = 0; c < n; c++) x[c * W + i] = 0;
        }
    }
    V m0 = F(set1)((REAL)-INFINITE), m1 = m0;
    int c = 0;
    for (; c + 2 <= n; c += 2) {
        m0 = F(max)(F(load)(x + c * W), m0);
        m1 = F(max)(F(load)(x + c * W + W), m1);
    }
    if (c < n) m0 = F(max)(F(load)(x + c * W), m0);
    return F(max)(m0, m1);
}

/* The statistics of one block of the loaded tile, as measure_block finds them, into the lanes of `s`;
   own classes are counted from the block's first. */
INLINE void NAME(measure_tile)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first,
                               int n, V max, F(normaliser) norm, NAME(lane_scratch) * room,
                               const REAL **b, int *step, V *own_class, NAME(row_set) * s) {
    REAL *x = room->x;
    V own = F(set1)(-1);
    if (job->own == OWN_MAX) {
        for (int c = n - 1; c >= 0; c--) {
            own = F(select)(F(eq)(F(load)(x + c * W), max), F(set1)((REAL)c), own);
        }
    } else if (job->own == OWN_LABEL) {
        own = rows->label;
        if (job->blocks > 1) {
            REAL place[W];
            for (int i = 0; i < W; i++)
                place[i] = (REAL)NAME(within)((int64_t)s->label[i], first, n);
            own = F(load)(place);
        }
    }
    *own_class = own;
    F(to_doubles)(max, s->max);
    if (job->dense) {
        const double *weight = NAME(weights_from)(job, first);
        for (int i = 0; W == 8 && i < W; i++) s->dense_low[i] = 0;
        *step = NAME(load_dense)(job, rows, first, n, room, b);
        const V from = F(keep)(F(eq)(F(sub)(max, max), F(set1)(0)), max);
        if (job->dense == DENSE_ONE) {
            for (int i = 0; i < W; i += 8) vd_store(s->dense + i, vd_set1(n));
            NAME(sum_tile)(job, SUM_DISTANCE, x, *b, 0, weight, from, n, s->dense_loss,
                           s->dense_loss_low);
            for (int i = 0; i < W; i += 8) {
                const vd sum = vd_load(s->dense_loss + i);
                vd_store(s->dense_loss + i, F(distance)(sum, NAME(eight)(from, i), n));
            }
        } else {
            NAME(sum_tile)(job, SUM_B, x, *b, *step, weight, from, n, s->dense, s->dense_low);
            NAME(sum_tile)(job, SUM_LOSS, x, *b, *step, weight, from, n, s->dense_loss,
                           s->dense_loss_low);
        }
    }
    if (job->dense) {
        for (int i = 0; i < W; i++) {
            const int64_t label = NAME(within)((int64_t)s->label[i], first, n);
            s->label_x[i] = label >= 0 ? x[label * W + i] : 0;
        }
    }
    const V own_x = NAME(exp_tile)(job, x, n, norm, own, s->rest, s->rest_low);
    F(to_doubles)(own_x, s->own_x);
}

/* One block a row: the factors b of the classes apart, lane by lane. */
INLINE void NAME(finish_lanes)(const REAL *b, int step, NAME(row_set) * s) {
    for (int i = 0; i < W; i++) {
        const int64_t own = (int64_t)s->own[i], label = (int64_t)s->label[i];
        s->own_b[i] = own < 0 ? 0 : step ? b[own * W + i] : b[own];
        s->label_b[i] = label < 0 ? 0 : step ? b[label * W + i] : b[label];
    }
}

/* (x − max) − log in place of x. */
INLINE void NAME(log_tile)(const NAME(row_set) * s, int n, REAL *x) {
    const V max = F(from_doubles)(s->max), log = F(from_doubles)(s->log);
#if W == 8
    const V low = F(from_doubles)(s->log_low);
#else
    const V low = F(set1)(0);
#endif
    for (int c = 0; c < n; c++) {
        F(store)(x + c * W, NAME(log_softmax)(F(load)(x + c * W), max, log, low));
    }
}

/* What rounding to the compute type lost of W doubles, where that is finite. */
INLINE V NAME(lost_of)(const double *exact, V rounded) {
    double lost[W];
    F(to_doubles)(rounded, lost);
    for (int i = 0; i < W; i++) lost[i] = lost[i] - lost[i] == 0 ? exact[i] - lost[i] : 0;
    return F(from_doubles)(lost);
}

/* The result of a block from its e. `scales` take e from the block's normaliser to the row's: NULL
   where they are 1. own and label count from the block's first class. */
INLINE void NAME(write_tile)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first,
                             int n, NAME(lane_scratch) * room, const NAME(row_set) * s,
                             const double *scales, int step, const REAL *b, V own, V label) {
    REAL *tile = room->x;
    const REAL least = W == 8 ? (REAL)0x1p-1021 : (REAL)0x1p-125;
    const V zero = F(set1)(0), one = F(set1)(1);
    V factor = F(from_doubles)(s->factor);
    const double *exact = s->factor;
    double factors[W];
    if (scales) {
        for (int i = 0; i < W; i++) factors[i] = s->factor[i] * scales[i];
        factor = F(from_doubles)(factors);
        exact = factors;
    }
    const V size = F(max)(factor, F(sub)(zero, factor));
    if (F(first)(F(nlt)(F(set1)(least), size)) >= 0) {
        for (int i = 0; i < W; i++) factors[i] = s->factor[i] * (scales ? scales[i] : 1);
        /* Factors too small for the compute type: part of them moves into e. */
        REAL lift[W];
        for (int i = 0; i < W; i++) {
            lift[i] = 1;
            if (__builtin_fabs(factors[i]) < (double)least) {
                factors[i] = s->factor[i] * BIAS_FACTOR * (scales ? scales[i] : 1);
                lift[i] = (REAL)(1 / BIAS_FACTOR);
            }
        }
        factor = F(from_doubles)(factors);
        exact = factors;
        const V up = F(load)(lift);
        for (int c = 0; c < n; c++) F(store)(tile + c * W, F(mul)(F(load)(tile + c * W), up));
    }
#if W == 8
    double lows[W];
    for (int i = 0; i < W; i++) {
        lows[i] = s->factor_low[i] * (scales ? scales[i] : 1);
        if (__builtin_fabs(s->factor[i] * (scales ? scales[i] : 1)) < least) lows[i] *= BIAS_FACTOR;
    }
    const V low = F(load)(lows);
    (void)exact;
#define SCALED(e) F(fma)(e, factor, F(mul)(e, low))
#else
#define SCALED(e) F(mul)(e, factor)
#endif
    const V own_grad = F(from_doubles)(s->own_grad);
    if (job->p->operation == PYCE_SOFTMAX) {
        for (int c = 0; c < n; c++) F(store)(tile + c * W, SCALED(F(load)(tile + c * W)));
    } else if (job->dense) {
        const V label_grad = F(from_doubles)(s->label_grad);
        const V dense_factor = F(from_doubles)(s->dense_factor);
#if W == 8
        const V dense_low = F(load)(s->dense_factor_low);
#else
        const V low = NAME(lost_of)(exact, factor);
        const V dense_low = NAME(lost_of)(s->dense_factor, dense_factor);
#endif
        const double *weight = NAME(weights_from)(job, first);
        for (int c = 0; c < n; c++) {
            const V at = F(set1)((REAL)c);
            V b_low;
            const V bv = NAME(tile_b)(job, b, step, weight, c, &b_low);
            V v = NAME(difference)(F(load)(tile + c * W), factor, low, bv, b_low, dense_factor,
                                   dense_low);
            v = F(select)(F(eq)(label, at), label_grad, v);
            F(store)(tile + c * W, F(select)(F(eq)(own, at), own_grad, v));
        }
    } else {
        V at = zero;
        for (int c = 0; c < n; c++) {
            const V v = SCALED(F(load)(tile + c * W));
            F(store)(tile + c * W, F(select)(F(eq)(own, at), own_grad, v));
            at = F(add)(at, one);
        }
    }
    if (!rows->all_live) {
        REAL live[W];
        for (int i = 0; i < W; i++) live[i] = (REAL)rows->live[i];
        const VM mask = F(eq)(F(load)(live), one);
        for (int c = 0; c < n; c++) {
            F(store)(tile + c * W, F(keep)(mask, F(load)(tile + c * W)));
        }
    }
#undef SCALED
    NAME(store_tile)(job, rows, first, n, tile);
}

/* Which rows count, and their labels. */
INLINE void NAME(load_labels)(const pyce_problem *p, NAME(lane_rows) * rows, NAME(row_set) * s) {
    const int64_t ignore = p->ignore_index;
    rows->all_live = 1;
    rows->label = F(set1)(-1);
    s->row = rows->row;
    s->n = rows->n;
    /* Lanes without a row are not settled, but their factors are looked at. */
    if (W == 16 && rows->n <= 8) vd_store(s->factor + 8, vd_set1(1.0));
    if (!p->labels) {
        for (int i = 0; i < W; i += 8) vd_store(s->label + i, vd_set1(-1.0));
        return;
    }
    const int wide = p->target == PYCE_INDEX64;
    const int64_t *from = (const int64_t *)p->labels + rows->row;
    const int32_t *from32 = (const int32_t *)p->labels + rows->row;
    int64_t few[W];
    int32_t few32[W];
    if (rows->n < W) {
        for (int i = 0; i < W && wide; i++) few[i] = i < rows->n ? from[i] : 0;
        for (int i = 0; i < W && !wide; i++) few32[i] = i < rows->n ? from32[i] : 0;
        from = few;
        from32 = few32;
    }
    vd label[W / 8];
    UNROLL
    for (int i = 0; i < W / 8; i++) {
        label[i] = wide ? vd_labels64(from + 8 * i, ignore) : vd_labels32(from32 + 8 * i, ignore);
        vd_store(s->label + 8 * i, label[i]);
    }
    rows->label = F(from_doubles)(s->label);
    if (F(first)(F(eq)(rows->label, F(set1)(-1))) < 0) return;
    rows->all_live = 0;
    for (int i = 0; i < W; i++) rows->live[i] = s->label[i] >= 0;
}

#if W == 16
/* The backward of a tile from its lse, as backward_blocks does it along a row. */
static void NAME(backward_tile)(const pyce_job *job, const NAME(lane_rows) * rows,
                                NAME(lane_scratch) * room, pyce_block *blocks, NAME(row_set) * s) {
    const pyce_problem *p = job->p;
    REAL lse[W];
    for (int i = 0; i < W; i++) {
        const int64_t row = rows->row + i;
        lse[i] = NAME(lives)(rows, i) ? (REAL)p->lse[row] : 0;
        s->own_grad[i] = s->factor[i] = 0;
        if (NAME(lives)(rows, i))
            s->factor[i] = NAME(row_scale)(job, row) * NAME(lse_scale)(p, row);
    }
    const F(normaliser) norm = F(normalise)(F(load)(lse));
    const V none = F(set1)(-1);
    for (int64_t k = 0; k < job->blocks; k++) {
        const int n = NAME(block_size)(job, k);
        const int64_t first = k * PYCE_BLOCK;
        REAL place[W];
        double sums[W];
        for (int i = 0; i < W; i++) place[i] = (REAL)NAME(within)((int64_t)s->label[i], first, n);
        NAME(load_tile)(p->logits.data, &p->logits, rows, first, n, room->x);
        NAME(exp_tile)(job, room->x, n, norm, F(load)(place), sums, s->rest_low);
        for (int i = 0; i < W; i++) blocks[i * job->blocks + k].sum = sums[i];
        NAME(write_tile)(job, rows, first, n, room, s, 0, 0, 0, none, none);
    }
    for (int i = 0; i < rows->n; i++) {
        if (NAME(lives)(rows, i))
            NAME(backward_label)(job, rows->row + i, blocks + i * job->blocks);
    }
}
#endif

/* The next rows of a tile, up to `end`. */
INLINE NAME(lane_rows) NAME(rows_at)(const pyce_job *job, int64_t row, int64_t end) {
    const int64_t inner = job->p->inner;
    NAME(lane_rows) rows;
    int64_t n = end - row;
    rows.row = row;
    rows.apart = inner == 1;
#if W == 16
    rows.order = 0;
#endif
    rows.outer = row;
    rows.inner = 0;
    if (!rows.apart) {
        rows.outer = row / inner;
        rows.inner = row % inner;
        if (inner - rows.inner < n) n = inner - rows.inner;
    }
    rows.n = n < W ? (int)n : W;
    rows.to = &job->p->result;
    const size_t size = W * sizeof(T);
    if (!rows.apart && job->streaming && rows.to->data &&
        (size_t)rows.to->class_stride * sizeof(T) % size == 0) {
        /* Up to where whole vectors of the result are aligned, if ever. */
        const T *out = (const T *)rows.to->data + NAME(offset_of)(rows.to, rows.outer) + rows.inner;
        const int past = (int)((uintptr_t)out % size / sizeof(T));
        if (past && rows.n > W - past) rows.n = W - past;
    }
    return rows;
}

/* -- rows of one block ------------------------------------------------------------------------------ */

static void NAME(batch_rows)(const pyce_job *job, int64_t begin, int64_t end,
                             const NAME(lane_scratch) * memory, double *losses, double *sums) {
    const pyce_problem *p = job->p;
    const int classes = (int)p->classes, batch = NAME(batch_of)(job);
    const int keep = p->operation != PYCE_FORWARD && p->operation != PYCE_LOGSUMEXP;
#if W == 16
    NAME(lane_order) order;
    if (classes <= PYCE_TINY) NAME(find_order)(classes, &order);
#endif
    NAME(row_set) sets[BATCH];
    NAME(lane_rows) rows[BATCH];
    NAME(lane_scratch) room[BATCH];
    V own[BATCH], max[BATCH];
    F(normaliser) norm[BATCH];
    const REAL *b[BATCH] = {0};
    int step[BATCH] = {0};
    for (int t = 0; t < batch; t++) {
        room[t] = *memory;
        room[t].x += t * classes * W;
        room[t].b += t * classes * W;
    }
    /* Rows one after the other are streamed as one piece, since they begin and end within lines. */
    const pyce_operand *g = &p->result;
    const int staged = keep && job->streaming && p->inner == 1 && g->class_stride == 1 &&
                       !g->offsets && g->outer_stride == classes;
    pyce_operand stage = *g;
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        T *out = 0, *from = 0;
        const int64_t first = row;
        if (staged) {
            out = (T *)g->data + row * classes;
            from = memory->stage + (uintptr_t)out % 64 / sizeof(T);
            stage.data = (void *)((uintptr_t)from - (uintptr_t)(row * classes) * sizeof(T));
        }
        int count = 0;
        for (; count < batch && row < tile_end; count++) {
            NAME(row_set) *s = sets + count;
            rows[count] = NAME(rows_at)(job, row, tile_end);
            if (staged) rows[count].to = &stage;
#if W == 16
            rows[count].order = classes <= PYCE_TINY ? &order : 0;
#endif
            NAME(load_labels)(p, rows + count, s);
            NAME(fetch)(job, rows + count, classes, keep);
            max[count] = NAME(load_max)(job, rows + count, 0, classes, room[count].x);
            row += rows[count].n;
        }
        for (int t = 0; t < count; t++) norm[t] = F(normalise)(max[t]);
        for (int t = 0; t < count; t++) {
            NAME(measure_tile)(job, rows + t, 0, classes, max[t], norm[t], room + t, b + t,
                               step + t, own + t, sets + t);
            if (job->dense) {
                F(to_doubles)(own[t], sets[t].own);
                NAME(finish_lanes)(b[t], step[t], sets + t);
            }
        }
        NAME(settle_rows)(job, sets, count);
        for (int t = 0; t < count; t++) {
            const NAME(row_set) *s = sets + t;
            double *to = losses + (s->row - tile);
            for (int i = 0; i < s->n; i += 8)
                vd_storen(to + i, NAME(left)(s, i), vd_load(s->loss + i));
            if (p->operation == PYCE_LOG_SOFTMAX) {
                NAME(load_tile)(p->logits.data, &p->logits, rows + t, 0, classes, room[t].x);
                NAME(log_tile)(s, classes, room[t].x);
                NAME(store_tile)(job, rows + t, 0, classes, room[t].x);
            } else if (keep) {
                NAME(write_tile)(job, rows + t, 0, classes, room + t, s, 0, step[t], b[t], own[t],
                                 rows[t].label);
            }
        }
        if (staged) NAME(stream_out)(out, from, (row - first) * classes);
        if (row == tile_end) NAME(reduce_tile)(job, tile, tile_end, losses, sums);
    }
    if (job->streaming) memory_fence();
}

/* -- any rows ---------------------------------------------------------------------------------------- */

static size_t NAME(lane_scratch_size)(const pyce_job *job) {
    const size_t classes = (size_t)(job->blocks > 1 ? PYCE_BLOCK : job->p->classes);
    const size_t blocks = (size_t)job->blocks * W * sizeof(pyce_block);
    const size_t tiles = (size_t)NAME(batch_of)(job);
    return (classes * (2 * tiles * W + 1) + 64) * sizeof(REAL) + blocks +
           (tiles * W * classes * sizeof(T) + 64) + 320;
}

static void NAME(lane_rows_run)(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                                double *sums) {
    const pyce_problem *p = job->p;
    char *carve = scratch;
    const size_t classes = (size_t)(job->blocks > 1 ? PYCE_BLOCK : p->classes);
    NAME(lane_scratch) memory, *room = &memory;
    const size_t tiles = (size_t)NAME(batch_of)(job);
    memory.x = NAME(carve)(&carve, tiles * classes * W * sizeof(REAL));
    memory.b = NAME(carve)(&carve, tiles * classes * W * sizeof(REAL));
    memory.coefficients = NAME(carve)(&carve, classes * sizeof(REAL));
    memory.stage = NAME(carve)(&carve, tiles * W * classes * sizeof(T) + 64);
    pyce_block *blocks = (void *)NAME(carve)(&carve, 0);
    const int keep = p->operation != PYCE_FORWARD && p->operation != PYCE_LOGSUMEXP;
    double losses[PYCE_TILE];
    if (NAME(in_batches)(job)) {
        NAME(batch_rows)(job, begin, end, room, losses, sums);
        return;
    }
    NAME(row_set) s;
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        NAME(lane_rows) rows = NAME(rows_at)(job, row, tile_end);
        NAME(load_labels)(p, &rows, &s);
#if W == 16
        if (p->operation == PYCE_BACKWARD && !job->dense && p->classes > PYCE_NARROW) {
            int fit = 1;
            for (int i = 0; i < rows.n; i++) {
                if (NAME(lives)(&rows, i) && !NAME(one_pass)(job, row + i)) fit = 0;
            }
            if (!fit && rows.n > 1) {
                rows.n = 1; /* one by one, since they differ in kind */
                NAME(load_labels)(p, &rows, &s);
                fit = NAME(one_pass)(job, row);
            }
            if (fit) {
                NAME(backward_tile)(job, &rows, room, blocks, &s);
                row += rows.n;
                continue;
            }
        }
#endif
        const REAL *b = 0;
        int step = 0;
        V own = F(set1)(-1), label = rows.label;
        for (int64_t k = 0; k < job->blocks; k++) {
            const int size = NAME(block_size)(job, k);
            const V max = NAME(load_max)(job, &rows, k * PYCE_BLOCK, size, room->x);
            NAME(measure_tile)(job, &rows, k * PYCE_BLOCK, size, max, F(normalise)(max), room, &b,
                               &step, &own, &s);
            REAL place[W];
            F(store)(place, own);
            for (int i = 0; i < W; i++) s.own[i] = place[i];
            for (int i = 0; i < W; i++) {
                blocks[i * job->blocks + k] =
                    (pyce_block){.max = s.max[i],
                                 .sum = s.rest[i],
                                 .sum_low = s.rest_low[i],
                                 .dense = s.dense[i],
                                 .dense_low = W == 8 ? s.dense_low[i] : 0,
                                 .dense_loss = s.dense_loss[i],
                                 .dense_loss_low = W == 8 ? s.dense_loss_low[i] : 0,
                                 .own = (int64_t)s.own[i]};
            }
        }
        for (int i = 0; i < W; i++) {
            if (!NAME(lives)(&rows, i)) {
                NAME(clear_lane)(i, &s);
                continue;
            }
            NAME(combine)(job, row + i, blocks + i * job->blocks, i, &s);
        }
        NAME(settle_rows)(job, &s, 1);
        for (int i = 0; i < rows.n; i++) losses[row - tile + i] = s.loss[i];
        for (int64_t k = 0; keep && k < job->blocks; k++) {
            const int size = NAME(block_size)(job, k);
            const int64_t first = k * PYCE_BLOCK;
            /* Too large to keep. */
            NAME(load_tile)(p->logits.data, &p->logits, &rows, first, size, room->x);
            if (p->operation == PYCE_LOG_SOFTMAX) {
                NAME(log_tile)(&s, size, room->x);
                NAME(store_tile)(job, &rows, first, size, room->x);
                continue;
            }
            double scales[W];
            REAL value[W], at_own[W], at_label[W];
            for (int i = 0; i < W; i++) {
                const pyce_block *block = blocks + i * job->blocks + k;
                scales[i] = NAME(lives)(&rows, i) ? block->scale : 1;
                value[i] = NAME(lives)(&rows, i) ? (REAL)block->max : 0;
                at_own[i] = (REAL)NAME(within)((int64_t)s.own[i], first, size);
                at_label[i] = (REAL)NAME(within)((int64_t)s.label[i], first, size);
            }
            const F(normaliser) norm = F(normalise)(F(load)(value));
            for (int c = 0; c < size; c++) {
                F(store)(room->x + c * W, F(exp)(F(load)(room->x + c * W), norm));
            }
            if (job->dense) step = NAME(load_dense)(job, &rows, first, size, room, &b);
            own = F(load)(at_own);
            label = F(load)(at_label);
            NAME(write_tile)(job, &rows, first, size, room, &s, scales, step, b, own, label);
        }
        row += rows.n;
        if (row == tile_end) NAME(reduce_tile)(job, tile, tile_end, losses, sums);
    }
    if (job->streaming) memory_fence();
}
