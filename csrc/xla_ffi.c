/* Cross-entropy as a foreign function of XLA, which `pyce.jax` registers.
 *
 * Arguments and results of the four kinds of call:
 *
 *     logits, target                          losses
 *     logits, target, factors                 losses, gradient
 *     logits, target, guess                   losses, saved, used
 *     logits, target, factors, saved, used    gradient
 *
 * Logits are (…, classes) or (…, classes, inner). The target is labels of 32 or 64 bits or
 * probabilities of the logits' shape. Labels, losses and factors have the logits' shape with one
 * class, (…, 1) or (…, 1, inner), which tells the class axis. Losses and factors are float64 for
 * float64 logits and else float32. The gradient is that of Σ factor·loss, of the logits' dtype and
 * shape. XLA's buffers are dense and row-major.
 *
 * A forward pass does not know the factors that the backward pass will bring, but they are often
 * those of a mean, which are equal and above 0. So the forward pass guesses them: it is the third
 * kind of call, to pyce_xla_cross_entropy_saving. It returns the gradient for `guess` as `saved`,
 * and `guess` as `used`. The fourth kind is the backward pass: if its factors are `used`, it
 * returns `saved`. Else the gradient is computed anew, from the logits. XLA gives `saved` and the
 * result the same memory, unless `saved` is used otherwise.
 *
 * After wrong guesses at logits of the same shape and dtype, the forward pass computes the losses
 * only. It does not write `saved`, and `used` is −guess, with which a backward pass computes the
 * gradient in any case. So the bytes of the results do not depend on the guesses. `used` has a
 * number for each row, since JAX may put forward passes together or take them apart before the
 * backward pass, as `vmap` does.
 *
 * Labels are read as JAX reads indices: −classes…−1 count from the last class. A row whose label is
 * outside −classes…classes−1 has the loss NaN and the gradient factor·softmax(logits), as if the
 * label's own logit did not depend on the logits. A row with the factor 0 has the gradient 0.
 *
 * XLA calls from threads of its own, without Python's lock, and any number of times at once.
 */
#include "platform.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fpenv.h"
#include "internal.h"
#include "xla_ffi.h"

static _Atomic int most_threads = 1;

/* Gradients of at least this many bytes get huge pages: XLA's memory is new in every call, and
   the system would take longer to provide it than the kernels take to write it. */
enum { HUGE_PAGES_FROM = 1 << 22 };

void pyce_xla_set_threads(int threads) { most_threads = threads < 1 ? 1 : threads; }

/* -- arguments ------------------------------------------------------------------------------------- */

static int dtype_of(int xla_dtype) {
    switch (xla_dtype) {
    case XLA_F32: return PYCE_FLOAT32;
    case XLA_F64: return PYCE_FLOAT64;
    case XLA_F16: return PYCE_FLOAT16;
    case XLA_BF16: return PYCE_BFLOAT16;
    default: return -1;
    }
}

/* The i-th of some values, or NULL unless it is a buffer whose rank and dimensions can be read. */
static const xla_buffer *buffer_at(const xla_values *values, int64_t i) {
    if (values->types[i] != XLA_BUFFER) return NULL;
    const xla_buffer *b = values->values[i];
    if (!b || b->struct_size < sizeof *b || b->rank < 0 || (b->rank && !b->dims)) return NULL;
    return b;
}

static int same_shape(const xla_buffer *a, const xla_buffer *b) {
    return a->rank == b->rank && !memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims);
}

/* The number of axes after the class axis, 0 or 1, if a buffer has the logits' shape with one
   class; else −1. If both numbers are possible, rows and classes are the same in both. */
static int axes_after_classes(const xla_buffer *rows, const xla_buffer *logits) {
    const int64_t rank = logits->rank;
    if (rank < 1 || rows->rank != rank) return -1;
    for (int after = 0; after <= 1 && after < rank; after++) {
        const int64_t classes = rank - 1 - after;
        if (rows->dims[classes] == 1 &&
            !memcmp(rows->dims, logits->dims, (size_t)classes * sizeof *rows->dims) &&
            (!after || rows->dims[rank - 1] == logits->dims[rank - 1])) {
            return after;
        }
    }
    return -1;
}

/* A call; buffers that it does not have are NULL. */
typedef struct {
    const xla_buffer *logits, *target, *factors, *saved, *used, *losses, *gradient;
} call;

/* Find the buffers of a call. Returns whether it has those of its kind: the third if it is
   `saving`, else one of the others. The guess counts as factors. */
static int find_buffers(const xla_call_frame *frame, int saving, call *c) {
    const xla_values *in = &frame->arguments, *out = &frame->results;
    const int forward = in->size < 5, backward = in->size > 2, checks = in->size == 5;
    if (in->size < 2 || in->size == 4 || in->size > 5 || (saving && in->size != 3)) return 0;
    if (out->size != forward + backward + saving) return 0;
    *c = (call){
        .logits = buffer_at(in, 0),
        .target = buffer_at(in, 1),
        .factors = backward ? buffer_at(in, 2) : NULL,
        .saved = checks ? buffer_at(in, 3) : NULL,
        .used = checks   ? buffer_at(in, 4)
                : saving ? buffer_at(out, 2)
                         : NULL,
        .losses = forward ? buffer_at(out, 0) : NULL,
        .gradient = backward ? buffer_at(out, forward) : NULL,
    };
    return c->logits && c->target && !forward == !c->losses && !backward == !c->gradient &&
           !backward == !c->factors && !checks == !c->saved && !(checks || saving) == !c->used;
}

/* Whether a buffer is NULL or has a number for each row, in the dtype of losses. */
static int is_of_rows(const xla_buffer *b, const xla_buffer *logits, int after) {
    const int dtype = logits->dtype == XLA_F64 ? XLA_F64 : XLA_F32;
    return !b || (b->dtype == dtype && axes_after_classes(b, logits) == after);
}

/* Whether a buffer is NULL or has the dtype and the shape of the logits. */
static int is_like(const xla_buffer *b, const xla_buffer *logits) {
    return !b || (b->dtype == logits->dtype && same_shape(b, logits));
}

/* Fill `p` from a call, except for its factors. Returns NULL, or what is wrong. */
static const char *read_call(const call *c, pyce_problem *p) {
    const xla_buffer *logits = c->logits, *target = c->target;
    const int dtype = dtype_of(logits->dtype), probs_dtype = dtype_of(target->dtype);
    const int index = target->dtype == XLA_S32 || target->dtype == XLA_S64;
    if (dtype < 0) return "pyce: logits must be float32, float64, float16 or bfloat16";
    if (!index && probs_dtype < 0) {
        return "pyce: labels must be int32 or int64, or probabilities of a floating dtype";
    }
    if (logits->rank < 1) return "pyce: logits must have a class axis";
    const int after = axes_after_classes(index       ? target
                                         : c->losses ? c->losses
                                                     : c->factors,
                                         logits);
    if (index ? after < 0 : !same_shape(target, logits)) {
        return "pyce: the shape of the labels does not match that of the logits";
    }
    if (after < 0 || !is_of_rows(c->losses, logits, after) ||
        !is_of_rows(c->factors, logits, after) || !is_of_rows(c->used, logits, after)) {
        return "pyce: losses and factors must have a number for each row, float64 for float64 "
               "logits, else float32";
    }
    if (!is_like(c->gradient, logits) || !is_like(c->saved, logits)) {
        return "pyce: gradients must have the dtype and the shape of the logits";
    }
    int64_t outer = 1, stride, bytes;
    const int64_t class_axis = logits->rank - 1 - after, classes = logits->dims[class_axis];
    const int64_t inner = after ? logits->dims[class_axis + 1] : 1;
    for (int64_t i = 0; i < class_axis; i++) {
        if (logits->dims[i] < 0 || __builtin_mul_overflow(outer, logits->dims[i], &outer)) {
            return "pyce: the logits are too large";
        }
    }
    if (classes < 1) return "pyce: logits must have at least one class";
    if (inner < 0 || __builtin_mul_overflow(classes, inner, &stride) ||
        __builtin_mul_overflow(outer, stride, &bytes) ||
        __builtin_mul_overflow(bytes, (int64_t)sizeof(double), &bytes)) {
        return "pyce: the logits are too large";
    }
    *p = (pyce_problem){
        .operation = c->gradient ? PYCE_FORWARD_BACKWARD : PYCE_FORWARD,
        .dtype = dtype,
        .target = !index                     ? PYCE_PROBABILITIES
                  : target->dtype == XLA_S64 ? PYCE_INDEX64
                                             : PYCE_INDEX32,
        .probs_dtype = index ? PYCE_FLOAT32 : probs_dtype,
        .reduction = c->losses ? PYCE_NONE : PYCE_SUM,
        .threads = most_threads,
        .outer = outer,
        .classes = classes,
        .inner = inner,
        .logits = {.data = logits->data, .outer_stride = stride, .class_stride = inner},
        .labels = index ? target->data : NULL,
        .grad_loss = 1.0,
        .ignore_index = INT64_MIN,
        .losses = c->losses ? c->losses->data : NULL,
    };
    const pyce_operand dense = {.outer_stride = stride, .class_stride = inner};
    if (c->gradient) {
        p->result = dense;
        p->result.data = c->gradient->data;
    }
    if (!index) {
        p->probs = dense;
        p->probs.data = target->data;
    }
    return NULL;
}

/* -- the factors of the gradient ------------------------------------------------------------------- */

static int dtype_of_losses(const pyce_problem *p) {
    return p->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
}

/* Whether the numbers of all rows have the same bytes. */
static int are_equal(const pyce_problem *p, const void *numbers) {
    const size_t size = pyce_item_size(dtype_of_losses(p));
    const size_t others = (size_t)(p->outer * p->inner - 1) * size;
    return !memcmp(numbers, (const char *)numbers + size, others);
}

/* Whether the memory of numbers for the rows is there and aligned. */
static int is_readable(const pyce_problem *p, const void *numbers) {
    return numbers && (uintptr_t)numbers % pyce_item_alignment(dtype_of_losses(p)) == 0;
}

/* Let the gradients of rows have factors. Returns memory to be freed after the run, or NULL if
   `p` needs none, or after an error in `*status`. */
static double *set_factors(pyce_problem *p, const void *factors, int *status) {
    const int64_t rows = p->outer * p->inner;
    const int dtype = dtype_of_losses(p);
    if (!is_readable(p, factors)) {
        *status = PYCE_BAD_ARGUMENT;
        return NULL;
    }
    /* Those of a mean or a sum are equal, and the kernels for few classes are faster without
       factors. */
    const double first = pyce_number_at(factors, dtype, 0);
    if (first && are_equal(p, factors)) {
        p->grad_loss = first;
        return NULL;
    }
    double *wide = malloc((size_t)rows * sizeof *wide);
    if (!wide) {
        *status = PYCE_NO_MEMORY;
        return NULL;
    }
    for (int64_t i = 0; i < rows; i++) wide[i] = pyce_number_at(factors, dtype, i);
    /* Where no loss is wanted they may weight the rows, and a weight 0 makes a gradient 0
       whatever the logits are. */
    if (p->losses) {
        p->grad_losses = wide;
    } else {
        p->sample_weight = wide;
    }
    return wide;
}

/* -- labels that are not in 0…classes−1 ------------------------------------------------------------ */

static void store(void *data, int dtype, int64_t i, double value) {
    switch (dtype) {
    case PYCE_FLOAT32: ((float *)data)[i] = (float)value; break;
    case PYCE_FLOAT64: ((double *)data)[i] = value; break;
    case PYCE_FLOAT16: ((uint16_t *)data)[i] = to_f16((float)value); break;
    default: ((uint16_t *)data)[i] = to_bf16((float)value);
    }
}

/* Write the softmax of a row to `scratch`, which has room for its classes in double precision. Runs on
   the calling thread, whose memory remains: after one row there is memory for any other. */
static int softmax_of_row(const pyce_problem *p, int64_t row, double *scratch) {
    const int64_t first = row / p->inner * p->logits.outer_stride + row % p->inner;
    for (int64_t c = 0; c < p->classes; c++) {
        scratch[c] = pyce_number_at(p->logits.data, p->dtype, first + c * p->inner);
    }
    pyce_problem softmax = {
        .operation = PYCE_SOFTMAX,
        .dtype = PYCE_FLOAT64,
        .reduction = PYCE_NONE,
        .threads = 1,
        .outer = 1,
        .classes = p->classes,
        .inner = 1,
        .logits = {.data = scratch, .outer_stride = p->classes, .class_stride = 1},
        .result = {.data = scratch, .outer_stride = p->classes, .class_stride = 1},
    };
    return pyce_run(&softmax);
}

/* Write the loss NaN and the gradient factor·softmax(logits) of one row, as far as they are asked
   for. */
static int write_unlabelled(const pyce_problem *p, int64_t row, double *scratch) {
    if (p->losses) store(p->losses, dtype_of_losses(p), row, __builtin_nan(""));
    if (!p->result.data) return PYCE_OK;
    const double *factors = p->sample_weight ? p->sample_weight : p->grad_losses;
    const double factor = factors ? factors[row] : p->grad_loss;
    if (!factor) return PYCE_OK; /* the kernel has written the gradient 0 of an ignored row */
    const int64_t first = row / p->inner * p->logits.outer_stride + row % p->inner;
    const int status = softmax_of_row(p, row, scratch);
    for (int64_t c = 0; c < p->classes && status == PYCE_OK; c++) {
        store(p->result.data, p->dtype, first + c * p->inner, factor * scratch[c]);
    }
    return status;
}

/* Run a problem some of whose labels are outside 0…classes−1. */
static int run_any_labels(pyce_problem *p) {
    const int64_t rows = p->outer * p->inner;
    int64_t *labels = malloc((size_t)rows * sizeof *labels);
    double *scratch = malloc((size_t)p->classes * sizeof *scratch);
    int status = labels && scratch ? PYCE_OK : PYCE_NO_MEMORY;
    for (int64_t i = 0; i < rows && status == PYCE_OK; i++) {
        int64_t label = p->target == PYCE_INDEX64 ? ((const int64_t *)p->labels)[i]
                                                  : ((const int32_t *)p->labels)[i];
        if (label < 0 && label >= -p->classes) label += p->classes;
        labels[i] = label < 0 || label >= p->classes ? p->ignore_index : label;
    }
    /* Whether there is memory is known before anything is written. */
    if (status == PYCE_OK && p->result.data) status = softmax_of_row(p, 0, scratch);
    if (status == PYCE_OK) {
        p->target = PYCE_INDEX64;
        p->labels = labels;
        status = pyce_run(p);
    }
    for (int64_t i = 0; i < rows && status == PYCE_OK; i++) {
        if (labels[i] == p->ignore_index) status = write_unlabelled(p, i, scratch);
    }
    free(scratch);
    free(labels);
    return status;
}

/* Whether a label is the smallest number of 64 bits, which the kernel would ignore. */
static int has_ignored_label(const pyce_problem *p) {
    if (p->target != PYCE_INDEX64) return 0;
    const int64_t *labels = p->labels, rows = p->outer * p->inner;
    for (int64_t i = 0; i < rows; i++) {
        if (labels[i] == p->ignore_index) return 1;
    }
    return 0;
}

/* -- the history of guesses ------------------------------------------------------------------------ */

/* An entry has a hash of the shape and the dtype of logits, and in its last two bits how often
   guesses there were wrong: one more for each wrong guess and one less for each right one,
   within 0…3. Calls race for the entries. They decide only whether a forward pass computes a
   gradient. */
enum { ENTRIES = 64, COUNTS = 4, MANY_WRONG = 2 };
static _Atomic uint64_t history[ENTRIES];

static uint64_t hash_of(const pyce_problem *p) {
    const int64_t numbers[] = {p->dtype, p->target, p->outer, p->classes, p->inner};
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        hash = (hash ^ (uint64_t)numbers[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash / COUNTS * COUNTS;
}

/* How often guesses for such a problem were wrong. */
static int wrong_guesses(uint64_t hash) {
    const uint64_t entry = history[hash / COUNTS % ENTRIES];
    return entry / COUNTS * COUNTS == hash ? (int)(entry % COUNTS) : 0;
}

static void remember_guess(uint64_t hash, int right) {
    const int wrong = wrong_guesses(hash);
    const int now = right ? (wrong ? wrong - 1 : 0) : (wrong < COUNTS - 1 ? wrong + 1 : wrong);
    if (now != wrong) history[hash / COUNTS % ENTRIES] = hash + (uint64_t)now;
}

/* Whether the factors are those that the forward pass guessed; `*computed`: and if so, whether
   it computed their gradient. */
static int was_right(const pyce_problem *p, const void *factors, const void *used, int *computed) {
    if (!are_equal(p, factors) || !are_equal(p, used)) return 0;
    const int dtype = dtype_of_losses(p);
    const double factor = pyce_number_at(factors, dtype, 0),
                 number = pyce_number_at(used, dtype, 0);
    *computed = !signbit(number);
    return !signbit(factor) && factor == fabs(number);
}

/* Write to `used` that the gradient for `guess` was computed, or that it was not. */
static void write_used(const pyce_problem *p, void *used, const void *guess, int computed) {
    const int64_t rows = p->outer * p->inner;
    if (computed) {
        memcpy(used, guess, (size_t)rows * pyce_item_size(dtype_of_losses(p)));
    } else if (p->dtype == PYCE_FLOAT64) {
        for (int64_t i = 0; i < rows; i++) ((double *)used)[i] = -((const double *)guess)[i];
    } else {
        for (int64_t i = 0; i < rows; i++) ((float *)used)[i] = -((const float *)guess)[i];
    }
}

/* -- the handlers ---------------------------------------------------------------------------------- */

/* Run a call that was read into `p`. `saving`: its gradient is one to be saved. Returns a status. */
static int run_call(const call *c, pyce_problem *p, int saving) {
    const int64_t rows = p->outer * p->inner;
    const size_t size = (size_t)(p->outer * p->logits.outer_stride) * pyce_item_size(p->dtype);
    if (!rows) return PYCE_OK;
    if (c->used && !(is_readable(p, c->used->data) && is_readable(p, c->factors->data))) {
        return PYCE_BAD_ARGUMENT;
    }
    if (c->saved && c->saved->data && p->result.data) {
        int computed = 0;
        const int right = was_right(p, c->factors->data, c->used->data, &computed);
        remember_guess(hash_of(p), right);
        if (right && computed) {
            if (p->result.data != c->saved->data) memcpy(p->result.data, c->saved->data, size);
            return PYCE_OK;
        }
    }
    const int computes = !saving || wrong_guesses(hash_of(p)) < MANY_WRONG;
    if (!computes) {
        p->operation = PYCE_FORWARD;
        p->result = (pyce_operand){0};
    }
    int status = PYCE_OK;
    double *memory = p->result.data ? set_factors(p, c->factors->data, &status) : NULL;
    if (p->result.data && size >= HUGE_PAGES_FROM) {
        platform_request_huge_pages(p->result.data, size);
    }
    /* Labels whose memory the kernel would refuse are not read. */
    const int readable = p->labels && (uintptr_t)p->labels % _Alignof(int64_t) == 0;
    if (status == PYCE_OK) {
        status = readable && has_ignored_label(p) ? PYCE_BAD_LABEL : pyce_run(p);
    }
    if (status == PYCE_BAD_LABEL) status = run_any_labels(p);
    if (status == PYCE_OK && saving) write_used(p, c->used->data, c->factors->data, computes);
    free(memory);
    return status;
}

/* An error for XLA. NULL, which means success, only if XLA gave no function to make one. */
static xla_error *error_of(const xla_api *api, int code, const char *message) {
    if (!api || api->struct_size < sizeof *api || api->version.struct_size != sizeof(xla_version) ||
        !api->create_error) {
        return NULL;
    }
    xla_error_arguments arguments = {
        .struct_size = offsetof(xla_error_arguments, code) + sizeof arguments.code,
        .message = message,
        .code = code,
    };
    return api->create_error(&arguments);
}

static const char UNKNOWN_SIZE[] =
    "pyce: a structure of XLA's foreign function interface has an unknown size";

/* Answer a query for metadata, which XLA makes when a handler is registered and when a program
   is compiled. */
static xla_error *answer(const xla_extension *query, const xla_api *api) {
    const xla_metadata_extension *extension = (const xla_metadata_extension *)query;
    xla_metadata *metadata = NULL;
    if (query->struct_size >= sizeof *extension) metadata = extension->metadata;
    if (!metadata ||
        metadata->struct_size < offsetof(xla_metadata, traits) + sizeof metadata->traits) {
        return error_of(api, XLA_UNIMPLEMENTED, UNKNOWN_SIZE);
    }
    metadata->version.major = XLA_MAJOR;
    metadata->version.minor = XLA_MINOR;
    metadata->traits = 0;
    return NULL;
}

static xla_error *handle(const xla_call_frame *frame, int saving) {
    const xla_api *api = frame->api;
    for (const xla_extension *e = frame->extensions; e; e = e->next) {
        if (e->type == XLA_METADATA) return answer(e, api);
    }
    if (api && (api->version.major != XLA_MAJOR || api->version.minor < XLA_MINOR)) {
        return error_of(api, XLA_UNIMPLEMENTED,
                        "pyce: this version of XLA's foreign function interface is not supported");
    }
    /* If `arguments` had more fields, `results` would not be where it is declared. */
    if (frame->struct_size < sizeof *frame || frame->arguments.struct_size != sizeof(xla_values) ||
        frame->results.struct_size < sizeof(xla_values)) {
        return error_of(api, XLA_UNIMPLEMENTED, UNKNOWN_SIZE);
    }
    /* XLA calls a handler in the stages for which it was registered, which is this one.
       Arguments must not be read in any other. */
    if (frame->stage != XLA_EXECUTE) {
        return error_of(api, XLA_INVALID_ARGUMENT,
                        "pyce: called in another stage than that of execution");
    }
    call c;
    if (!find_buffers(frame, saving, &c)) {
        return error_of(api, XLA_INVALID_ARGUMENT,
                        "pyce: the number of arguments and results is wrong, or one is no buffer");
    }
    pyce_problem p;
    const char *wrong = read_call(&c, &p);
    if (wrong) return error_of(api, XLA_INVALID_ARGUMENT, wrong);
    const pyce_fpenv before =
        pyce_fpenv_enter(); /* XLA's threads may flush subnormal numbers to 0 */
    const int status = run_call(&c, &p, saving);
    pyce_fpenv_leave(before);
    if (status == PYCE_OK) return NULL;
    return error_of(api, status == PYCE_NO_MEMORY ? XLA_RESOURCE_EXHAUSTED : XLA_INTERNAL,
                    status == PYCE_NO_MEMORY ? "pyce: out of memory"
                                             : "pyce: a buffer is missing, misaligned or overlaps");
}

void *pyce_xla_cross_entropy(void *call_frame) { return handle(call_frame, 0); }

void *pyce_xla_cross_entropy_saving(void *call_frame) { return handle(call_frame, 1); }
