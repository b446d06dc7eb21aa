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
} NAME(lane_scratch);

/* Where W rows lie: rows first…first+n−1 of the problem. */
typedef struct {
    int64_t row;
    int n;
    int apart;            /* rows lie apart (inner == 1), else side by side */
    int64_t outer, inner; /* of the first */
    int live[W], all_live;
} NAME(lane_rows);

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
    const T *row[W];
    T packed[W * W];
    for (int i = 0; i < W; i++) {
        /* The last row stands in for those past the end. */
        const int64_t r = rows->row + (i < rows->n ? i : rows->n - 1);
        row[i] = x + NAME(offset_of)(a, r) + first * a->class_stride;
    }
    for (int c = 0; c < n; c += W) {
        const int width = n - c < W ? n - c : W;
        V v[W];
        for (int i = 0; i < W; i++) {
            const T *from =
                NAME(gather)(row[i] + c * a->class_stride, a->class_stride, width, packed + i * W);
            v[i] = width == W ? LOAD(from) : LOADN(from, width, 0);
        }
        F(transpose)(v);
        for (int j = 0; j < width; j++) F(store)(tile + (c + j) * W, v[j]);
    }
}

INLINE void NAME(store_tile)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first, int n,
                             const REAL *tile) {
    const pyce_operand *g = &job->p->result;
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
    for (int c = 0; c < n; c += W) {
        const int width = n - c < W ? n - c : W;
        V v[W];
        for (int j = 0; j < W; j++) v[j] = F(load)(tile + (c + (j < width ? j : 0)) * W);
        F(transpose)(v);
        for (int i = 0; i < rows->n; i++) {
            T *to = out + NAME(offset_of)(g, rows->row + i) + (first + c) * g->class_stride;
            if (g->class_stride == 1) {
                if (width == W) {
                    STORE(to, v[i]);
                } else {
                    STOREN(to, width, v[i]);
                }
            } else {
                T packed[W];
                STOREN(packed, width, v[i]);
                for (int j = 0; j < width; j++) to[j * g->class_stride] = packed[j];
            }
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
    if (p->probs_dtype == p->dtype && !p->weight && p->smoothing == 0) {
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


INLINE V NAME(term)(int kind, const REAL *tile, const REAL *b, int step, V own_or_max, int c) {
    const V zero = F(set1)(0);
    if (kind == SUM_E) {
        return F(drop)(F(eq)(own_or_max, F(set1)((REAL)c)), F(load)(tile + c * W));
    }
    const V t = step ? F(load)(b + c * W) : F(set1)(b[c]);
    if (kind == SUM_B) return t;
    return F(drop)(F(eq)(t, zero), F(mul)(t, F(sub)(own_or_max, F(load)(tile + c * W))));
}

INLINE V NAME(eight_terms)(int kind, const REAL *tile, const REAL *b, int step, V own_or_max, int c,
                           int stride, int n) {
    V v[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        const int at = c + j * stride;
        v[j] = at < n ? NAME(term)(kind, tile, b, step, own_or_max, at) : F(set1)(0);
    }
    return F(add)(F(add)(F(add)(v[0], v[1]), F(add)(v[2], v[3])),
                  F(add)(F(add)(v[4], v[5]), F(add)(v[6], v[7])));
}

INLINE void NAME(sum_tile)(const pyce_job *job, int kind, const REAL *tile, const REAL *b, int step,
                           V own_or_max, int n, double sums[W]) {
    if (job->p->classes <= PYCE_NARROW) {
        F(sum) sum = F(sum_zero)();
        for (int c = 0; c < n; c += 8) {
            F(sum_add)(&sum, NAME(eight_terms)(kind, tile, b, step, own_or_max, c, 1, n));
        }
        F(sum_lanes)(sum, sums);
        return;
    }
    /* As along a row: W running sums, class c belonging to the (c mod W)-th. */
    F(sum) along[W];
    for (int l = 0; l < W; l++) along[l] = F(sum_zero)();
    for (int c = 0; c < n; c += ROUND) {
        for (int l = 0; l < W; l++) {
            F(sum_add)(&along[l], NAME(eight_terms)(kind, tile, b, step, own_or_max, c + l, W, n));
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
    vd_store(sums, vd_add(vd_tree(part[0]), vd_tree(part[1])));
#endif
}

/* x of the tile becomes e; the sum of those that are not the row's own, per lane. */
INLINE void NAME(exp_tile)(const pyce_job *job, REAL *tile, int n, F(normaliser) norm, V own,
                           double sums[W]) {
    for (int c = 0; c < n; c++) {
        F(store)(tile + c * W, F(exp)(F(load)(tile + c * W), norm));
    }
    NAME(sum_tile)(job, SUM_E, tile, 0, 0, own, n, sums);
}

/* The statistics of one block of the tile, as measure_block finds them, into the lanes of `s`; own
   classes are counted from the block's first. */
INLINE void NAME(measure_tile)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first, int n,
                               NAME(lane_scratch) * room, const REAL **b, int *step,
                               NAME(row_set) * s) {
    REAL *x = room->x;
    NAME(load_tile)(job->p->logits.data, &job->p->logits, rows, first, n, x);
    if (!rows->all_live) {
        /* What an ignored row holds must not matter. */
        for (int i = 0; i < rows->n; i++) {
            if (rows->live[i]) continue;
            for (int c = 0; c < n; c++) x[c * W + i] = 0;
        }
    }
    V max = F(set1)((REAL)-INFINITE), own = F(set1)(-1);
    for (int c = 0; c < n; c++) max = F(max)(F(load)(x + c * W), max);
    REAL place[W];
    if (job->own == OWN_MAX) {
        for (int c = n - 1; c >= 0; c--) {
            own = F(select)(F(eq)(F(load)(x + c * W), max), F(set1)((REAL)c), own);
        }
        F(store)(place, own);
        for (int i = 0; i < W; i++) s->own[i] = (int64_t)place[i];
    } else if (job->own == OWN_LABEL) {
        for (int i = 0; i < W; i++) {
            s->own[i] = NAME(within)(s->label[i], first, n);
            place[i] = (REAL)s->own[i];
        }
        own = F(load)(place);
    }
    F(to_doubles)(max, s->max);
    if (job->dense) {
        *step = NAME(load_dense)(job, rows, first, n, room, b);
        const V from = F(keep)(F(eq)(F(sub)(max, max), F(set1)(0)), max);
        NAME(sum_tile)(job, SUM_B, x, *b, *step, from, n, s->dense);
        NAME(sum_tile)(job, SUM_LOSS, x, *b, *step, from, n, s->dense_loss);
    }
    for (int i = 0; i < W; i++) {
        const int64_t label = NAME(within)(s->label[i], first, n);
        if (label >= 0) s->label_x[i] = x[label * W + i];
    }
    NAME(exp_tile)(job, x, n, F(normalise)(max), own, s->rest);
}

/* One block a row: own_x and the factors b of the classes apart, lane by lane. */
INLINE void NAME(finish_lanes)(const pyce_job *job, const REAL *b, int step, NAME(row_set) * s) {
    for (int i = 0; i < W; i++) {
        const int64_t own = s->own[i], label = s->label[i];
        if (job->own == OWN_LABEL) {
            s->own_x[i] = own >= 0 ? s->label_x[i] : s->own_x[i];
        } else {
            s->own_x[i] = own >= 0 ? s->max[i] : -INFINITE;
        }
        if (!job->dense) continue;
        if (own >= 0) s->own_b[i] = step ? b[own * W + i] : b[own];
        if (label >= 0) s->label_b[i] = step ? b[label * W + i] : b[label];
    }
}

/* (x − max) − log in place of x. */
INLINE void NAME(log_tile)(const NAME(row_set) * s, int n, REAL *x) {
    const V max = F(from_doubles)(s->max), log = F(from_doubles)(s->log);
    for (int c = 0; c < n; c++) {
        F(store)(x + c * W, F(sub)(F(sub)(F(load)(x + c * W), max), log));
    }
}

/* The result of a block from its e. */
INLINE void NAME(write_tile)(const pyce_job *job, const NAME(lane_rows) * rows, int64_t first, int n,
                             NAME(lane_scratch) * room, const NAME(row_set) * s,
                             const double scales[W], int step, const REAL *b) {
    REAL *tile = room->x;
    REAL factor[W], lift[W], dense_factor[W], own[W], label[W], own_grad[W], label_grad[W], live[W];
    int lifted = 0;
    const double least = W == 8 ? 0x1p-1021 : 0x1p-125;
    const int apart = job->p->operation != PYCE_SOFTMAX;
    for (int i = 0; i < W; i++) {
        double f = s->factor[i] * scales[i];
        lift[i] = 1;
        if (__builtin_fabs(f) < least && f != 0) {
            f = s->factor[i] * BIAS_FACTOR * scales[i];
            lift[i] = (REAL)(1 / BIAS_FACTOR);
            lifted = 1;
        }
        factor[i] = (REAL)f;
        live[i] = i < rows->n && rows->live[i];
        own[i] = apart ? (REAL)NAME(within)(s->own[i], first, n) : -1;
        label[i] = apart && job->dense ? (REAL)NAME(within)(s->label[i], first, n) : -1;
        own_grad[i] = (REAL)s->own_grad[i];
        dense_factor[i] = job->dense ? (REAL)s->dense_factor[i] : 0;
        label_grad[i] = job->dense ? (REAL)s->label_grad[i] : 0;
    }
    const V fv = F(load)(factor), gv = F(load)(dense_factor);
    const V ov = F(load)(own), lv = F(load)(label), og = F(load)(own_grad), lg = F(load)(label_grad);
    if (lifted) {
        const V up = F(load)(lift);
        for (int c = 0; c < n; c++) F(store)(tile + c * W, F(mul)(F(load)(tile + c * W), up));
    }
    if (job->dense) {
        for (int c = 0; c < n; c++) {
            const V at = F(set1)((REAL)c);
            const V bv = step ? F(load)(b + c * W) : F(set1)(b[c]);
            V v = F(sub)(F(mul)(F(load)(tile + c * W), fv), F(mul)(gv, bv));
            v = F(select)(F(eq)(lv, at), lg, v);
            F(store)(tile + c * W, F(select)(F(eq)(ov, at), og, v));
        }
    } else {
        for (int c = 0; c < n; c++) {
            const V v = F(mul)(F(load)(tile + c * W), fv);
            F(store)(tile + c * W, F(select)(F(eq)(ov, F(set1)((REAL)c)), og, v));
        }
    }
    if (!rows->all_live) {
        const VM mask = F(eq)(F(load)(live), F(set1)(1));
        for (int c = 0; c < n; c++) {
            F(store)(tile + c * W, F(keep)(mask, F(load)(tile + c * W)));
        }
    }
    NAME(store_tile)(job, rows, first, n, tile);
}

static size_t NAME(lane_scratch_size)(const pyce_job *job) {
    const size_t classes = (size_t)(job->blocks > 1 ? PYCE_BLOCK : job->p->classes);
    const size_t blocks = job->blocks > 1 ? (size_t)job->blocks * W * sizeof(pyce_block) : 0;
    return (classes * (2 * W + 1) + 64) * sizeof(REAL) + blocks + 256;
}

static void NAME(lane_rows_run)(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                                double *sums) {
    const pyce_problem *p = job->p;
    char *carve = scratch;
    const size_t classes = (size_t)(job->blocks > 1 ? PYCE_BLOCK : p->classes);
    NAME(lane_scratch) memory, *room = &memory;
    memory.x = NAME(carve)(&carve, classes * W * sizeof(REAL));
    memory.b = NAME(carve)(&carve, classes * W * sizeof(REAL));
    memory.coefficients = NAME(carve)(&carve, classes * sizeof(REAL));
    pyce_block *blocks = (void *)NAME(carve)(&carve, 0);
    const int keep = p->operation != PYCE_FORWARD && p->operation != PYCE_LOGSUMEXP;
    double losses[PYCE_TILE];
    NAME(row_set) s;
    for (int64_t row = begin; row < end;) {
        const int64_t tile = row / job->tile * job->tile;
        const int64_t tile_end = tile + job->tile < end ? tile + job->tile : end;
        NAME(lane_rows) rows = {.row = row, .apart = p->inner == 1, .all_live = 1};
        int64_t n = tile_end - row;
        if (!rows.apart) {
            rows.outer = row / p->inner;
            rows.inner = row % p->inner;
            if (p->inner - rows.inner < n) n = p->inner - rows.inner;
        }
        rows.n = n < W ? (int)n : W;
        for (int i = 0; i < W; i++) {
            NAME(clear_lane)(i, &s);
            rows.live[i] = i < rows.n && NAME(is_live)(p, row + i);
            if (rows.live[i]) s.label[i] = NAME(label_of)(p, row + i);
            if (i < rows.n && !rows.live[i]) rows.all_live = 0;
        }
        const REAL *b = 0;
        int step = 0;
        for (int64_t k = 0; k < job->blocks; k++) {
            const int size = NAME(block_size)(job, k);
            NAME(measure_tile)(job, &rows, k * PYCE_BLOCK, size, room, &b, &step, &s);
            for (int i = 0; i < W && job->blocks > 1; i++) {
                blocks[i * job->blocks + k] = (pyce_block){.max = s.max[i],
                                                           .sum = s.rest[i],
                                                           .dense = s.dense[i],
                                                           .dense_loss = s.dense_loss[i],
                                                           .own = s.own[i]};
            }
        }
        if (job->blocks == 1) {
            NAME(finish_lanes)(job, b, step, &s);
        } else {
            for (int i = 0; i < rows.n; i++) {
                if (rows.live[i]) NAME(combine)(job, row + i, blocks + i * job->blocks, i, &s);
            }
        }
        NAME(settle_rows)(job, row, rows.n, &s);
        for (int i = 0; i < rows.n; i++) losses[row - tile + i] = s.loss[i];
        for (int64_t k = 0; keep && k < job->blocks; k++) {
            const int size = NAME(block_size)(job, k);
            const int64_t first = k * PYCE_BLOCK;
            const int again = job->blocks > 1; /* too large to keep */
            double scales[W];
            REAL value[W];
            if (again || p->operation == PYCE_LOG_SOFTMAX) {
                NAME(load_tile)(p->logits.data, &p->logits, &rows, first, size, room->x);
            }
            if (p->operation == PYCE_LOG_SOFTMAX) {
                NAME(log_tile)(&s, size, room->x);
                NAME(store_tile)(job, &rows, first, size, room->x);
                continue;
            }
            for (int i = 0; i < W; i++) {
                const pyce_block *block = blocks + i * job->blocks + k;
                const int used = again && rows.live[i];
                scales[i] = used ? block->scale : 1;
                value[i] = used ? (REAL)block->max : 0;
            }
            if (again) {
                const F(normaliser) norm = F(normalise)(F(load)(value));
                for (int c = 0; c < size; c++) {
                    F(store)(room->x + c * W, F(exp)(F(load)(room->x + c * W), norm));
                }
                if (job->dense) step = NAME(load_dense)(job, &rows, first, size, room, &b);
            }
            NAME(write_tile)(job, &rows, first, size, room, &s, scales, step, b);
        }
        row += rows.n;
        if (row == tile_end) NAME(reduce_tile)(job, tile, tile_end, losses, sums);
    }
    if (job->streaming) memory_fence();
}
