/* The statistics of LANES rows and what follows from them, one row per lane; and access to rows. */

/* A field *_error is the rounding error of the field before it, for float64 logits only. */
typedef struct {
    /* Input of finalize_rows. The arrays are whole vectors of 64 bytes. */
    double max[LANES];
    double rest[LANES]; /* Σ e without the pivot */
    double rest_error[LANES];
    double pivot_x[LANES], label_x[LANES];
    double pivot_b[LANES], label_b[LANES];    /* float64 logits: the targets, not yet blended */
    double soft_sum[LANES], soft_loss[LANES]; /* Σ b and Σ b·(max − x) */
    double soft_sum_error[LANES], soft_loss_error[LANES];
    double pivot[LANES], label[LANES]; /* classes, or −1; label is −1 also where a row is ignored */
    /* Between the steps of finalize_rows. */
    double quotient[LANES], quotient_error[LANES];           /* others/e_m */
    double without_pivot[LANES], without_pivot_error[LANES]; /* S − e_o */
    double pivot_e[LANES], label_e[LANES];                   /* e_o and e_y */
    double inverse[LANES], inverse_error[LANES];             /* 1/S */
    double bad[LANES];                                       /* NaN where the row's result is NaN */
    /* Output. */
    double loss[LANES];
    double factor[LANES]; /* grad_c = factor·e(x_c) − soft_factor·b_c */
    double factor_error[LANES];
    double soft_factor[LANES];
    double soft_factor_error[LANES];
    double pivot_grad[LANES], label_grad[LANES];
    double log[LANES]; /* lse − max */
    double log_error[LANES];
    int64_t row; /* the first lane's row of the problem */
    int n;       /* lanes that stand for a row */
} ALIGNED row_state;

_Static_assert(sizeof(row_state) <= PYCE_STATE_BYTES, "the core reserves room for a row_state");
_Static_assert(LANES * sizeof(real) == 64, "a vector is a line of the cache");

#define CHUNK (8 * LANES)           /* numbers in eight vectors */
#define STEP (STEP_VECTORS * LANES) /* numbers in one step of the loops along a row */
_Static_assert(PYCE_BLOCK % CHUNK == 0, "only a row's last block has a partial chunk");

INLINE int64_t label_of(const pyce_problem *p, int64_t row) {
    if (p->target == PYCE_INDEX64) return ((const int64_t *)p->labels)[row];
    if (p->target == PYCE_INDEX32) return ((const int32_t *)p->labels)[row];
    return -1;
}

INLINE int is_valid(const pyce_problem *p, int64_t row) {
    return !p->labels || label_of(p, row) != p->ignore_index;
}

INLINE int64_t offset_of(const pyce_operand *a, int64_t outer) {
    return a->offsets ? a->offsets[outer] : outer * a->outer_stride;
}
/* The first class of a row. */
INLINE const element *logits_of(const pyce_problem *p, int64_t row) {
    const element *x = (const element *)p->logits.data + offset_of(&p->logits, row / p->inner);
    return x + row % p->inner;
}

/* The first class of a block, and the number of its classes. */
INLINE int64_t block_begin(const pyce_job *job, int64_t k) {
    return job->begins ? job->begins[k] : k * PYCE_BLOCK;
}
INLINE int block_size(const pyce_job *job, int64_t k) {
    if (job->begins) return (int)(job->begins[k + 1] - job->begins[k]);
    const int64_t left = job->p->classes - k * PYCE_BLOCK;
    return left < PYCE_BLOCK ? (int)left : PYCE_BLOCK;
}

/* Class c counted from `first`, or −1 where it is not one of the n classes from there on. */
INLINE int index_within(int64_t c, int64_t first, int n) {
    return c >= first && c < first + n ? (int)(c - first) : -1;
}

/* How many of lanes i…i+7 stand for a row. */
INLINE int rows_left(const row_state *s, int i) { return s->n - i < 8 ? s->n - i : 8; }

/* A lane that stands for no row, or for an ignored one. */
static void clear_lane(int lane, row_state *s) {
    s->max[lane] = s->rest[lane] = s->rest_error[lane] = s->pivot_x[lane] = s->label_x[lane] = 0;
    s->pivot_b[lane] = s->label_b[lane] = s->soft_sum[lane] = s->soft_loss[lane] = 0;
    s->soft_sum_error[lane] = s->soft_loss_error[lane] = 0;
    s->pivot[lane] = s->label[lane] = -1;
}

/* n numbers from a strided array, one after the other. */
static const element *gather(const element *x, int64_t stride, int n, element *buffer) {
    if (stride == 1) return x;
    for (int i = 0; i < n; i++) buffer[i] = x[i * stride];
    return buffer;
}
static void scatter(const element *from, int n, element *to, int64_t stride) {
    for (int c = 0; c < n; c++) to[c * stride] = from[c];
}

/* The next `bytes` bytes of scratch memory, 64-byte aligned. */
INLINE void *carve(char **at, size_t bytes) {
    char *start = (char *)(((uintptr_t)*at + 63) & ~(uintptr_t)63);
    *at = start + bytes;
    return start;
}

INLINE float vf_get_f16(const uint16_t *p) {
    float a[16];
    vf_store(a, vf_loadn_f16(p, 1, 0));
    return a[0];
}
INLINE float vf_get_bf16(const uint16_t *p) {
    float a[16];
    vf_store(a, vf_loadn_bf16(p, 1, 0));
    return a[0];
}
