/* Blocks of rows in lanes: a lane block is an array of vectors in scratch, one per class, each with
 * that class of LANES rows.
 *
 * A lane block of up to PYCE_BLOCK classes is loaded (rows that lie one after the other are transposed
 * in registers), worked on in place, and stored. Up to PYCE_FEW classes a row's sum is taken in groups
 * of eight classes in order; above, in the order of block.inc.h.
 */

/* Memory for a lane block. */
typedef struct {
    real *x, *b; /* class by class, one row per lane; x becomes e */
    real *coefficients;
    element *stage; /* results of a batch before they are streamed */
} lane_scratch;

/* Where LANES rows lie: rows first…first+n−1 of the problem. */
typedef struct {
    int64_t row;
    int n;
    int separate;         /* rows lie one after the other (inner == 1), else side by side */
    int64_t outer, inner; /* of the first */
    int all_valid;        /* no row is ignored; if one is, valid[] says which: */
    int valid[LANES];
    const pyce_operand *to; /* where results go: the problem's, or one of the same layout */
    vreal label;            /* as numbers; −1 where there is none */
} lane_rows;

/* Whether lane i stands for a row that is not ignored. */
INLINE int lane_is_valid(const lane_rows *rows, int i) {
    return i < rows->n && (rows->all_valid || rows->valid[i]);
}

/* -- memory -------------------------------------------------------------------------------------------- */

/* Rows that lie side by side. */
INLINE void load_adjacent(const element *x, const pyce_operand *a, const lane_rows *rows,
                          int64_t first, int n, real *block) {
    x += offset_of(a, rows->outer) + first * a->class_stride + rows->inner;
    if (rows->n == LANES) {
        for (int c = 0; c < n; c++) v_store(block + c * LANES, m_load(x + c * a->class_stride));
    } else {
        for (int c = 0; c < n; c++) {
            v_store(block + c * LANES, m_loadn(x + c * a->class_stride, rows->n, 0));
        }
    }
}

/* Rows that lie one after the other. */
INLINE void load_transposed(const element *x, const pyce_operand *a, const lane_rows *rows,
                            int64_t first, int n, real *block) {
    const element *row[LANES];
    element packed[LANES];
    x += first * a->class_stride;
    /* Lanes past the last row repeat it. */
    if (a->offsets) {
        const int64_t *offset = a->offsets + rows->row;
        for (int i = 0; i < LANES; i++) row[i] = x + offset[i < rows->n ? i : rows->n - 1];
    } else {
        x += rows->row * a->outer_stride;
        for (int i = 0; i < LANES; i++) {
            row[i] = x + (i < rows->n ? i : rows->n - 1) * a->outer_stride;
        }
    }
    for (int c = 0; c < n; c += LANES) {
        const int width = n - c < LANES ? n - c : LANES;
        vreal v[LANES];
        if (a->class_stride != 1) {
            for (int i = 0; i < LANES; i++) {
                gather(row[i] + c * a->class_stride, a->class_stride, width, packed);
                v[i] = m_loadn(packed, width, 0);
            }
        } else if (width == LANES) {
            UNROLL
            for (int i = 0; i < LANES; i++) v[i] = m_load(row[i] + c);
        } else {
            UNROLL
            for (int i = 0; i < LANES; i++) v[i] = m_loadn(row[i] + c, width, 0);
        }
        v_transpose(v);
        UNROLL
        for (int j = 0; j < width; j++) v_store(block + (c + j) * LANES, v[j]);
    }
}

/* Rows that lie one after the other, all LANES of them, can be loaded and stored four classes at a
   time. Rows of two or three classes are read and written as four elements; what lies there is the
   next row, so they must be packed. */
INLINE int fits_fours(const pyce_operand *a, int64_t n) {
    return ROWS_BY_FOURS && n > 1 && a->class_stride == 1 && !a->offsets &&
           (n >= 4 || a->outer_stride == n);
}
INLINE int by_fours(const pyce_operand *a, const lane_rows *rows, int n) {
    return rows->n == LANES && fits_fours(a, n);
}
/* The class after c at which the next four begin: the last four of n overlap those before them. */
INLINE int next_four(int c, int n) { return c + 8 <= n ? c + 4 : n - 4; }

/* Returns the maximum of the classes. */
INLINE vreal load_by_fours(const pyce_operand *a, const lane_rows *rows, int64_t first, int n,
                           real *block) {
    vreal max = v_set1((real)-INFINITE);
    const element *x = (const element *)a->data + rows->row * a->outer_stride + first;
    const int width = n < 4 ? n : 4;
    for (int c = 0;; c = next_four(c, n)) {
        vreal v[4];
        m_load_rows(v, x + c, a->outer_stride, width);
        UNROLL
        for (int j = 0; j < 4; j++) {
            if (j >= width) continue;
            v_store(block + (c + j) * LANES, v[j]);
            max = v_max(v[j], max);
        }
        if (c + 4 >= n) return max;
    }
}
INLINE void store_by_fours(const lane_rows *rows, int64_t first, int n, const real *block) {
    const pyce_operand *g = rows->to;
    element *out = (element *)g->data + rows->row * g->outer_stride + first;
    const int width = n < 4 ? n : 4;
    for (int c = 0;; c = next_four(c, n)) {
        vreal v[4];
        UNROLL
        for (int j = 0; j < 4; j++) v[j] = v_load(block + (c + (j < width ? j : 0)) * LANES);
        m_store_rows(out + c, g->outer_stride, v, width);
        if (c + 4 >= n) return;
    }
}

/* n classes from `first` on. */
static void load_lane_block(const pyce_operand *a, const lane_rows *rows, int64_t first, int n,
                            real *block) {
    if (!rows->separate) {
        load_adjacent(a->data, a, rows, first, n, block);
    } else if (by_fours(a, rows, n)) {
        load_by_fours(a, rows, first, n, block);
    } else {
        load_transposed(a->data, a, rows, first, n, block);
    }
}

/* Whether vectors of every class are aligned, from `out` on. */
INLINE int streams(const pyce_operand *g, const element *out) {
    const size_t size = LANES * sizeof(element);
    return (uintptr_t)out % size == 0 && (size_t)g->class_stride * sizeof(element) % size == 0;
}

INLINE void store_adjacent(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                           const real *block) {
    const pyce_operand *g = rows->to;
    element *out = (element *)g->data + offset_of(g, rows->outer) + first * g->class_stride;
    out += rows->inner;
    if (rows->n == LANES && job->streaming && streams(g, out)) {
        for (int c = 0; c < n; c++) m_stream(out + c * g->class_stride, v_load(block + c * LANES));
    } else if (rows->n == LANES) {
        for (int c = 0; c < n; c++) m_store(out + c * g->class_stride, v_load(block + c * LANES));
    } else {
        for (int c = 0; c < n; c++) {
            m_storen(out + c * g->class_stride, rows->n, v_load(block + c * LANES));
        }
    }
}

INLINE void store_transposed(const lane_rows *rows, int64_t first, int n, const real *block) {
    const pyce_operand *g = rows->to;
    element *out = g->data;
    for (int c = 0; c < n; c += LANES) {
        const int width = n - c < LANES ? n - c : LANES;
        vreal v[LANES];
        UNROLL
        for (int j = 0; j < LANES; j++) v[j] = v_load(block + (c + (j < width ? j : 0)) * LANES);
        v_transpose(v);
        if (rows->n == LANES && g->class_stride == 1 && !g->offsets) {
            element *to = out + rows->row * g->outer_stride + first + c;
            if (width == LANES) {
                UNROLL
                for (int i = 0; i < LANES; i++) m_store(to + i * g->outer_stride, v[i]);
            } else {
                UNROLL
                for (int i = 0; i < LANES; i++) m_storen(to + i * g->outer_stride, width, v[i]);
            }
            continue;
        }
        for (int i = 0; i < rows->n; i++) {
            element *to = out + offset_of(g, rows->row + i) + (first + c) * g->class_stride;
            element packed[LANES];
            m_storen(packed, width, v[i]);
            for (int j = 0; j < width; j++) to[j * g->class_stride] = packed[j];
        }
    }
}

static void store_lane_block(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                             const real *block) {
    if (!rows->separate) {
        store_adjacent(job, rows, first, n, block);
    } else if (by_fours(rows->to, rows, n)) {
        store_by_fours(rows, first, n, block);
    } else {
        store_transposed(rows, first, n, block);
    }
}

/* Loads one block of the rows; its maximum, lane by lane. */
static vreal load_any_and_max(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                              real *x) {
    load_lane_block(&job->p->logits, rows, first, n, x);
    if (!rows->all_valid) {
        /* The logits of an ignored row must not matter. */
        for (int i = 0; i < rows->n; i++) {
            if (rows->valid[i]) continue;
            for (int c = 0; c < n; c++) x[c * LANES + i] = 0;
        }
    }
    vreal m0 = v_set1((real)-INFINITE), m1 = m0;
    int c = 0;
    for (; c + 2 <= n; c += 2) {
        m0 = v_max(v_load(x + c * LANES), m0);
        m1 = v_max(v_load(x + c * LANES + LANES), m1);
    }
    if (c < n) m0 = v_max(v_load(x + c * LANES), m0);
    return v_max(m0, m1);
}

INLINE vreal load_and_max(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                          real *x) {
    const pyce_operand *a = &job->p->logits;
    if (rows->separate && rows->all_valid && by_fours(a, rows, n)) {
        return load_by_fours(a, rows, first, n, x);
    }
    return load_any_and_max(job, rows, first, n, x);
}

/* -- soft-target factors ---------------------------------------------------------------------------------- */

/* Factors b of a lane block's classes, and the step from class to class: 0 where all rows share
   them. */
INLINE int load_soft(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                     lane_scratch *room, const real **b) {
    const pyce_problem *p = job->p;
    if (job->soft != SOFT_PROBS) {
        *b = soft_block(job, 0, 0, first, n, room->coefficients);
        return 0;
    }
    *b = room->b;
    if (p->probs_dtype == p->dtype && (COMPENSATED || !job->blended)) {
        load_lane_block(&p->probs, rows, first, n, room->b);
        return LANES;
    }
    for (int i = 0; i < LANES; i++) {
        const int r = i < rows->n ? i : rows->n - 1;
        const int64_t outer = rows->separate ? rows->row + r : rows->outer;
        const int64_t inner = rows->separate ? 0 : rows->inner + r;
        const real *from = soft_block(job, outer, inner, first, n, room->coefficients);
        for (int c = 0; c < n; c++) room->b[c * LANES + i] = from[c];
    }
    return LANES;
}

/* b of class c of a lane block whose class weights are `weights`. */
INLINE vreal soft_at(const pyce_job *job, const real *b, int step, const double *weights, int c,
                     vreal *error) {
    const vreal t = step ? v_load(b + c * LANES) : v_set1(b[c]);
    return blended(job, t, spread_weight(weights, c), error);
}

/* -- sums ---------------------------------------------------------------------------------------------- */

INLINE vreal e_without_pivot(const real *block, vreal pivot, int c) {
    return v_drop(v_eq(pivot, v_set1((real)c)), v_load(block + c * LANES));
}

/* Adds the terms of classes c, c + stride, … (at most eight) to a running sum. */
INLINE void add_terms(const pyce_job *job, vsum *sum, int kind, const real *block, const real *b,
                      int step, const double *weights, vreal pivot_or_max, int c, int stride,
                      int n) {
    if (kind == SUM_LOSS || kind == SUM_DISTANCE) {
        for (int j = 0; j < 8 && c + j * stride < n; j++) {
            const int at = c + j * stride;
            vreal error;
            const vreal t = soft_at(job, b, step, weights, at, &error);
            sum_add_loss(sum, kind == SUM_DISTANCE, t, error, pivot_or_max,
                         v_load(block + at * LANES));
        }
        return;
    }
    vreal v[8], errors[8];
    UNROLL
    for (int j = 0; j < 8; j++) {
        const int at = c + j * stride;
        v[j] = errors[j] = v_set1(0);
        if (at >= n) continue;
        v[j] = kind == SUM_B ? soft_at(job, b, step, weights, at, &errors[j])
                             : e_without_pivot(block, pivot_or_max, at);
    }
    if (stride == 1) {
        sum_add_some(sum, v, n - c);
    } else {
        sum_add8(sum, v);
    }
    if (kind == SUM_B) sum_add_errors(sum, errors);
}

/* The sum of one kind over the classes of a lane block, for each row. */
INLINE void sum_lane_block(const pyce_job *job, int kind, const real *block, const real *b,
                           int step, const double *weights, vreal pivot_or_max, int n,
                           double sums[LANES], double errors[LANES]) {
    if (job->p->classes <= PYCE_FEW) {
        vsum sum = sum_zero();
        for (int c = 0; c < n; c += 8) {
            add_terms(job, &sum, kind, block, b, step, weights, pivot_or_max, c, 1, n);
        }
        sum_lanes(sum, sums, errors);
        return;
    }
    /* As along a row: LANES running sums, class c belonging to the (c mod LANES)-th. */
    vsum along[LANES];
    for (int l = 0; l < LANES; l++) along[l] = sum_zero();
    for (int c = 0; c < n; c += CHUNK) {
        for (int l = 0; l < LANES; l++) {
            add_terms(job, &along[l], kind, block, b, step, weights, pivot_or_max, c + l, LANES, n);
        }
    }
    sum_totals_across(along, sums, errors);
}

/* exp_lane_block above PYCE_FEW classes. */
static __attribute__((noinline)) vreal exp_many_classes(const pyce_job *job, real *block, int n,
                                                        const normaliser *norm, vreal pivot,
                                                        double sums[LANES], double errors[LANES]) {
    vreal pivot_x = v_set1((real)-INFINITE);
    for (int c = 0; c < n; c++) {
        const vreal x = v_load(block + c * LANES);
        pivot_x = v_select(v_eq(pivot, v_set1((real)c)), x, pivot_x);
        v_store(block + c * LANES, exp1(x, *norm));
    }
    sum_lane_block(job, SUM_E, block, 0, 0, 0, pivot, n, sums, errors);
    return pivot_x;
}

/* x of n classes becomes e. */
INLINE void exp_all_lanes(real *x, int n, normaliser norm) {
    int c = 0;
    for (; c + LANE_STEP_VECTORS <= n; c += LANE_STEP_VECTORS) {
        vreal v[LANE_STEP_VECTORS];
        UNROLL
        for (int j = 0; j < LANE_STEP_VECTORS; j++) v[j] = v_load(x + (c + j) * LANES);
        exps(v, LANE_STEP_VECTORS, norm);
        UNROLL
        for (int j = 0; j < LANE_STEP_VECTORS; j++) v_store(x + (c + j) * LANES, v[j]);
    }
    for (; c < n; c++) v_store(x + c * LANES, exp1(v_load(x + c * LANES), norm));
}

/* x of the lane block becomes e; the sums of those that are not a row's pivot; returns x of the
   pivots. */
INLINE vreal exp_lane_block(const pyce_job *job, real *block, int n, normaliser norm, vreal pivot,
                            double sums[LANES], double errors[LANES]) {
    if (job->p->classes > PYCE_FEW) {
        return exp_many_classes(job, block, n, &norm, pivot, sums, errors);
    }
    vreal pivot_x = v_set1((real)-INFINITE);
    vsum sum = sum_zero();
    if (n <= COMPARED_CLASSES || job->pivot == PIVOT_NONE) {
        for (int c = 0; c < n; c += LANE_STEP_VECTORS) {
            vreal v[LANE_STEP_VECTORS];
            vmask at_pivot[LANE_STEP_VECTORS];
            UNROLL
            for (int j = 0; j < LANE_STEP_VECTORS; j++) {
                v[j] = v_load(block + (c + j < n ? c + j : c) * LANES);
                at_pivot[j] = v_eq(pivot, v_set1((real)(c + j)));
                if (c + j < n) pivot_x = v_select(at_pivot[j], v[j], pivot_x);
            }
            exps(v, LANE_STEP_VECTORS, norm);
            UNROLL
            for (int j = 0; j < LANE_STEP_VECTORS; j++) {
                if (c + j >= n) continue;
                v_store(block + (c + j) * LANES, v[j]);
                sum_add(&sum, v_drop(at_pivot[j], v[j]));
            }
        }
        sum_lanes(sum, sums, errors);
        return pivot_x;
    }
    /* The same sum, with the pivots' e set to 0 in memory, one after the other, rather than looked for
       in each vector. */
    real place[LANES], none[LANES], pivot_e[LANES], *at[LANES];
    v_store(place, pivot);
    UNROLL
    for (int i = 0; i < LANES; i++) {
        none[i] = (real)-INFINITE;
        at[i] = place[i] < 0 ? none + i : block + (int)place[i] * LANES + i;
        pivot_e[i] = *at[i];
    }
    pivot_x = v_load(pivot_e);
    exp_all_lanes(block, n, norm);
    UNROLL
    for (int i = 0; i < LANES; i++) {
        pivot_e[i] = *at[i];
        *at[i] = 0;
    }
    for (int c = 0; c < n; c++) sum_add_from(&sum, block + c * LANES);
    UNROLL
    for (int i = 0; i < LANES; i++) *at[i] = pivot_e[i];
    sum_lanes(sum, sums, errors);
    return pivot_x;
}

/* The pivots of a lane block, counted from its first class; −1 where it has none. */
INLINE vreal pivots_of(const pyce_job *job, const lane_rows *rows, int64_t first, int n, vreal max,
                       const real *x, const row_state *s) {
    if (job->pivot == PIVOT_MAX) {
        vreal pivot = v_set1(-1);
        for (int c = n - 1; c >= 0; c--) {
            pivot = v_select(v_eq(v_load(x + c * LANES), max), v_set1((real)c), pivot);
        }
        return pivot;
    }
    if (job->pivot == PIVOT_NONE) return v_set1(-1);
    if (job->blocks == 1) return rows->label;
    real place[LANES];
    for (int i = 0; i < LANES; i++) place[i] = (real)index_within((int64_t)s->label[i], first, n);
    return v_load(place);
}

/* Of the soft-target term of a loaded lane block: Σ b and Σ b·(max − x), and x of the labels. */
static void soft_lane_block(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                            vreal max, lane_scratch *room, const real **b, int *step,
                            row_state *s) {
    const real *x = room->x;
    const double *weights = class_weights_from(job, first);
    const vreal from = v_keep(v_eq(v_sub(max, max), v_set1(0)), max);
    for (int i = 0; i < LANES; i += 8) {
        vd_store(s->soft_sum_error + i, vd_set1(0));
        vd_store(s->soft_loss_error + i, vd_set1(0));
    }
    *step = load_soft(job, rows, first, n, room, b);
    if (job->soft == SOFT_ONE) {
        for (int i = 0; i < LANES; i += 8) vd_store(s->soft_sum + i, vd_set1(n));
        sum_lane_block(job, SUM_DISTANCE, x, *b, 0, weights, from, n, s->soft_loss,
                       s->soft_loss_error);
        for (int i = 0; i < LANES; i += 8) {
            const vd sum = vd_load(s->soft_loss + i);
            vd_store(s->soft_loss + i, sum_distance(sum, v_eight(from, i), n));
        }
    } else if (job->p->classes > PYCE_FEW ||
               !finite_lane_sums(x, *b, *step, n, from, s->soft_sum, s->soft_loss)) {
        sum_lane_block(job, SUM_B, x, *b, *step, weights, from, n, s->soft_sum, s->soft_sum_error);
        sum_lane_block(job, SUM_LOSS, x, *b, *step, weights, from, n, s->soft_loss,
                       s->soft_loss_error);
    }
    for (int i = 0; i < LANES; i++) {
        const int64_t label = index_within((int64_t)s->label[i], first, n);
        s->label_x[i] = label >= 0 ? x[label * LANES + i] : 0;
    }
}

/* The statistics of a loaded lane block, as block_statistics finds them, into the lanes of `s`, whose x
   become e. Returns the pivots, counted from the block's first class. */
INLINE vreal lane_block_statistics(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                                   vreal max, normaliser norm, lane_scratch *room, const real **b,
                                   int *step, row_state *s) {
    const vreal pivot = pivots_of(job, rows, first, n, max, room->x, s);
    v_to_doubles(max, s->max);
    if (job->soft) soft_lane_block(job, rows, first, n, max, room, b, step, s);
    v_to_doubles(exp_lane_block(job, room->x, n, norm, pivot, s->rest, s->rest_error), s->pivot_x);
    return pivot;
}

/* Where a row is one block: b of the pivot and the label, lane by lane. */
INLINE void soft_of_special(const real *b, int step, row_state *s) {
    for (int i = 0; i < LANES; i++) {
        const int64_t pivot = (int64_t)s->pivot[i], label = (int64_t)s->label[i];
        s->pivot_b[i] = pivot < 0 ? 0 : step ? b[pivot * LANES + i] : b[pivot];
        s->label_b[i] = label < 0 ? 0 : step ? b[label * LANES + i] : b[label];
    }
}

/* -- results ------------------------------------------------------------------------------------------- */

/* (x − max) − log in place of x. */
static void log_lane_block(const row_state *s, int n, real *x) {
    const vreal max = v_from_doubles(s->max), log = v_from_doubles(s->log);
    const vreal error = COMPENSATED ? v_from_doubles(s->log_error) : v_set1(0);
    for (int c = 0; c < n; c++) {
        v_store(x + c * LANES, log_softmax_of(v_load(x + c * LANES), max, log, error));
    }
}

/* The rounding errors of LANES doubles in the compute type, 0 where they are not finite; for doubles,
   `errors`. */
INLINE vreal real_errors(const double *exact, const double *errors, vreal rounded) {
    if (COMPENSATED) return v_from_doubles(errors);
    double value[LANES], error[LANES];
    v_to_doubles(rounded, value);
    for (int i = 0; i < LANES; i++) {
        error[i] = value[i] - value[i] == 0 ? exact[i] - value[i] : 0;
    }
    return v_from_doubles(error);
}

/* factors[i] = s->factor[i]·scales[i] with their errors; factors that are too small are lifted, and e
   in `block` lowered. */
static __attribute__((noinline)) void lift_factors(const pyce_job *job, const row_state *s,
                                                   const double *scales, int n, real *block,
                                                   double *factors, double *errors) {
    real lift[LANES];
    int lifted = 0;
    for (int i = 0; i < LANES; i++) {
        errors[i] = COMPENSATED ? s->factor_error[i] : 0;
        const double scale = scales ? scales[i] : BIAS_FACTOR;
        factors[i] = lifted_factor(job, s->factor[i], scale, errors + i, lift + i);
        lifted |= lift[i] != 1;
    }
    if (!lifted) return;
    const vreal by = v_load(lift);
    for (int c = 0; c < n; c++) v_store(block + c * LANES, v_mul(v_load(block + c * LANES), by));
}

/* The result of a lane block from its e. `scales` are those of the blocks (kernels.h): NULL
   where they are BIAS_FACTOR. `pivot` and `label` count from the block's first class. */
static void write_lane_block(const pyce_job *job, const lane_rows *rows, int64_t first, int n,
                             lane_scratch *room, const row_state *s, const double *scales, int step,
                             const real *b, vreal pivot, vreal label) {
    real *block = room->x;
    const vreal zero = v_set1(0), one = v_set1(1);
    double factors[LANES], errors[LANES];
    const double *exact = s->factor, *exact_errors = s->factor_error;
    vreal factor = v_from_doubles(s->factor);
    const vreal size = v_max(factor, v_sub(zero, factor));
    int clear = !rows->all_valid; /* rows of zeros */
    if (scales || v_first(v_nlt(v_set1((real)LEAST_FACTOR), size)) >= 0) {
        lift_factors(job, s, scales, n, block, factors, errors);
        exact = factors;
        exact_errors = errors;
        factor = v_from_doubles(factors);
        for (int i = 0; i < LANES; i++) clear |= is_zero_row(job, s, i);
    }
    const vreal error = COMPENSATED ? v_from_doubles(exact_errors) : zero;
    const vreal pivot_grad = v_from_doubles(s->pivot_grad);
    if (is_softmax(job)) {
        const vreal factor_error = real_errors(exact, exact_errors, factor);
        for (int c = 0; c < n; c++) {
            const vreal e = v_load(block + c * LANES);
            v_store(block + c * LANES, quotient_of(e, factor, factor_error));
        }
    } else if (job->soft) {
        const vreal label_grad = v_from_doubles(s->label_grad);
        const vreal soft_factor = v_from_doubles(s->soft_factor);
        const vreal factor_error = real_errors(exact, exact_errors, factor);
        const vreal soft_error = real_errors(s->soft_factor, s->soft_factor_error, soft_factor);
        const double *weights = class_weights_from(job, first);
        for (int c = 0; c < n; c++) {
            const vreal at = v_set1((real)c);
            vreal b_error;
            const vreal bv = soft_at(job, b, step, weights, c, &b_error);
            vreal v = soft_difference(v_load(block + c * LANES), factor, factor_error, bv, b_error,
                                      soft_factor, soft_error);
            v = v_select(v_eq(label, at), label_grad, v);
            v_store(block + c * LANES, v_select(v_eq(pivot, at), pivot_grad, v));
        }
    } else {
        vreal at = zero;
        for (int c = 0; c < n; c++) {
            const vreal v = v_scaled(v_load(block + c * LANES), factor, error);
            v_store(block + c * LANES, v_select(v_eq(pivot, at), pivot_grad, v));
            at = v_add(at, one);
        }
    }
    if (clear) {
        real valid[LANES];
        for (int i = 0; i < LANES; i++) {
            valid[i] = (rows->all_valid || rows->valid[i]) && !is_zero_row(job, s, i);
        }
        const vmask mask = v_eq(v_load(valid), one);
        for (int c = 0; c < n; c++) {
            v_store(block + c * LANES, v_keep(mask, v_load(block + c * LANES)));
        }
    }
    store_lane_block(job, rows, first, n, block);
}

/* Whether the gradient of the rows of a lane block is e·factor except at their pivots, no factor is too
   small, and no row is ignored. */
INLINE int is_plain_gradient(const pyce_job *job, const lane_rows *rows, int n, vreal factor) {
    const vreal size = v_max(factor, v_sub(v_set1(0), factor));
    return !COMPENSATED && !job->soft && job->p->operation <= PYCE_BACKWARD && rows->all_valid &&
           rows->separate && by_fours(rows->to, rows, n) &&
           v_first(v_nlt(v_set1((real)LEAST_FACTOR), size)) < 0;
}
/* Writes it, scaled on the way to memory. Above COMPARED_CLASSES, `place` has the pivots as well. */
INLINE void write_plain_gradient(const lane_rows *rows, int n, const real *block, vreal factor,
                                 vreal pivot, vreal pivot_grad, const int *place) {
    const pyce_operand *g = rows->to;
    element *out = (element *)g->data + rows->row * g->outer_stride;
    const int width = n < 4 ? n : 4, compare = n <= COMPARED_CLASSES;
    for (int c = 0;; c = next_four(c, n)) {
        vreal v[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            const int at = c + (j < width ? j : 0);
            v[j] = v_mul(v_load(block + at * LANES), factor);
            if (compare) v[j] = v_select(v_eq(pivot, v_set1((real)at)), pivot_grad, v[j]);
        }
        m_store_rows(out + c, g->outer_stride, v, width);
        if (c + 4 >= n) break;
    }
    if (compare) return;
    real grads[LANES];
    v_store(grads, pivot_grad);
    UNROLL
    for (int i = 0; i < LANES; i++) {
        if (place[i] < 0) continue;
        m_storen(out + i * g->outer_stride + place[i], 1, v_set1(grads[i]));
    }
}
