/* Cross-entropy as a foreign function of XLA, which `pyce.jax` registers.
 *
 * Arguments and results of the three kinds of call:
 *
 *     logits, target                           losses
 *     logits, target, factors                  losses, gradient
 *     logits, target, factors, saved, guess    gradient
 *
 * Logits are (…, classes, inner), the target labels (…, inner) of 32 or 64 bits or probabilities of the
 * logits' shape. Losses and factors (…, inner) are float64 for float64 logits and else float32. The gradient
 * is that of Σ factor·loss, of the logits' dtype and shape. XLA's buffers are dense and row-major.
 *
 * A forward pass does not know the factors that the backward pass will bring, but they are often those of
 * a mean. So the second kind of call, the forward pass, guesses them, and the third is the backward pass:
 * `saved` is the gradient for `guess`, and is returned if these are the factors. Else the gradient is computed
 * anew, from the logits. XLA gives `saved` and the result the same memory, unless `saved` is used otherwise.
 *
 * Labels are read as JAX reads indices: −classes…−1 count from the last class. A row whose label is
 * outside −classes…classes−1 has the loss NaN and the gradient factor·softmax(logits), as if the label's
 * own logit did not depend on the logits. A row with the factor 0 has the gradient 0.
 *
 * XLA calls from threads of its own, without Python's lock, and any number of times at once.
 */
#include "platform.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fpenv.h"
#include "internal.h"
#include "xla_ffi.h"

static _Atomic int most_threads = 1;

/* Gradients of at least this many bytes get huge pages: XLA's memory is new in every call, and the system would
   take longer to provide it than the kernels take to write it. */
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

/* Whether a shape is that of the logits without the class axis, the last but one. */
static int is_row_shape(const xla_buffer *a, const xla_buffer *logits) {
    const int64_t outer = logits->rank - 2;
    return a->rank == outer + 1 && a->dims[outer] == logits->dims[outer + 1] &&
           !memcmp(a->dims, logits->dims, (size_t)outer * sizeof *a->dims);
}

/* A call; buffers that it does not have are NULL. */
typedef struct {
    const xla_buffer *logits, *target, *factors, *saved, *guess, *losses, *gradient;
} call;

/* Find the buffers of a call. Returns whether it has those of one of the three kinds. */
static int find_buffers(const xla_call_frame *frame, call *c) {
    const xla_values *in = &frame->arguments, *out = &frame->results;
    const int forward = in->size < 5, backward = in->size > 2, checks = in->size == 5;
    if (in->size < 2 || in->size == 4 || in->size > 5 || out->size != forward + backward) return 0;
    *c = (call){
        .logits = buffer_at(in, 0),
        .target = buffer_at(in, 1),
        .factors = backward ? buffer_at(in, 2) : NULL,
        .saved = checks ? buffer_at(in, 3) : NULL,
        .guess = checks ? buffer_at(in, 4) : NULL,
        .losses = forward ? buffer_at(out, 0) : NULL,
        .gradient = backward ? buffer_at(out, forward) : NULL,
    };
    return c->logits && c->target && !forward == !c->losses && !backward == !c->gradient &&
           !backward == !c->factors && !checks == !c->saved && !checks == !c->guess;
}

/* Whether a buffer is NULL or has a number for each row, in the dtype of losses. */
static int is_of_rows(const xla_buffer *b, const xla_buffer *logits) {
    const int dtype = logits->dtype == XLA_F64 ? XLA_F64 : XLA_F32;
    return !b || (b->dtype == dtype && is_row_shape(b, logits));
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
    if (logits->rank < 2) return "pyce: logits must have a class axis and one after it";
    if (index ? !is_row_shape(target, logits) : !same_shape(target, logits)) {
        return "pyce: the shape of the labels does not match that of the logits";
    }
    if (!is_of_rows(c->losses, logits) || !is_of_rows(c->factors, logits) ||
        !is_of_rows(c->guess, logits)) {
        return "pyce: losses and factors must have a number for each row, float64 for float64 "
               "logits, else float32";
    }
    if (!is_like(c->gradient, logits) || !is_like(c->saved, logits)) {
        return "pyce: gradients must have the dtype and the shape of the logits";
    }
    int64_t outer = 1, stride, bytes;
    const int64_t classes = logits->dims[logits->rank - 2], inner = logits->dims[logits->rank - 1];
    for (int64_t i = 0; i < logits->rank - 2; i++) {
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

/* Let the gradients of rows have factors. Returns memory to be freed after the run, or NULL if `p` needs
   none, or after an error in `*status`. */
static double *set_factors(pyce_problem *p, const void *factors, int *status) {
    const int64_t rows = p->outer * p->inner;
    const int dtype = p->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    if (!factors || (uintptr_t)factors % pyce_item_alignment(dtype)) {
        *status = PYCE_BAD_ARGUMENT;
        return NULL;
    }
    /* Those of a mean or a sum are equal, and the kernels for few classes are faster without factors. */
    const size_t size = pyce_item_size(dtype);
    const double first = pyce_number_at(factors, dtype, 0);
    if (first && !memcmp(factors, (const char *)factors + size, (size_t)(rows - 1) * size)) {
        p->grad_loss = first;
        return NULL;
    }
    double *wide = malloc((size_t)rows * sizeof *wide);
    if (!wide) {
        *status = PYCE_NO_MEMORY;
        return NULL;
    }
    for (int64_t i = 0; i < rows; i++) wide[i] = pyce_number_at(factors, dtype, i);
    /* Where no loss is wanted they may weight the rows, and a weight 0 makes a gradient 0 whatever the logits
       are. */
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

/* Write the loss NaN and the gradient factor·softmax(logits) of one row, as far as they are asked for;
   `scratch` has room for its classes in double precision. */
static int write_unlabelled(const pyce_problem *p, int64_t row, double *scratch) {
    if (p->losses) {
        const int dtype = p->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
        store(p->losses, dtype, row, __builtin_nan(""));
    }
    if (!p->result.data) return PYCE_OK;
    const double *factors = p->sample_weight ? p->sample_weight : p->grad_losses;
    const double factor = factors ? factors[row] : p->grad_loss;
    if (!factor) return PYCE_OK; /* the kernel has written the gradient 0 of an ignored row */
    const int64_t first = row / p->inner * p->logits.outer_stride + row % p->inner;
    for (int64_t c = 0; c < p->classes; c++) {
        scratch[c] = pyce_number_at(p->logits.data, p->dtype, first + c * p->inner);
    }
    pyce_problem softmax = {
        .operation = PYCE_SOFTMAX,
        .dtype = PYCE_FLOAT64,
        .reduction = PYCE_NONE,
        .threads = p->threads,
        .outer = 1,
        .classes = p->classes,
        .inner = 1,
        .logits = {.data = scratch, .outer_stride = p->classes, .class_stride = 1},
        .result = {.data = scratch, .outer_stride = p->classes, .class_stride = 1},
    };
    const int status = pyce_run(&softmax);
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

/* -- the handler ----------------------------------------------------------------------------------- */

/* Run a call that was read into `p`. Returns a status. */
static int run_call(const call *c, pyce_problem *p) {
    const int64_t rows = p->outer * p->inner;
    const size_t size = (size_t)(p->outer * p->logits.outer_stride) * pyce_item_size(p->dtype);
    if (!rows) return PYCE_OK;
    if (c->saved && c->saved->data && c->guess->data && c->factors->data && p->result.data) {
        const size_t one = pyce_item_size(p->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32);
        if (!memcmp(c->factors->data, c->guess->data, (size_t)rows * one)) {
            if (p->result.data != c->saved->data) memcpy(p->result.data, c->saved->data, size);
            return PYCE_OK;
        }
    }
    int status = PYCE_OK;
    double *memory = c->factors ? set_factors(p, c->factors->data, &status) : NULL;
    if (p->result.data && size >= HUGE_PAGES_FROM) {
        platform_request_huge_pages(p->result.data, size);
    }
    /* Labels whose memory the kernel would refuse are not read. */
    const int readable = p->labels && (uintptr_t)p->labels % _Alignof(int64_t) == 0;
    if (status == PYCE_OK) {
        status = readable && has_ignored_label(p) ? PYCE_BAD_LABEL : pyce_run(p);
    }
    if (status == PYCE_BAD_LABEL) status = run_any_labels(p);
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

/* Answer a query for metadata, which XLA makes when a handler is registered and when a program is
   compiled. Returns whether the call is one. */
static int answer_metadata(const xla_call_frame *frame) {
    for (const xla_extension *e = frame->extensions; e; e = e->next) {
        if (e->type != XLA_METADATA) continue;
        xla_metadata *metadata = ((const xla_metadata_extension *)e)->metadata;
        metadata->version.major = XLA_MAJOR;
        metadata->version.minor = XLA_MINOR;
        metadata->traits = 0;
        return 1;
    }
    return 0;
}

void *pyce_xla_cross_entropy(void *call_frame) {
    const xla_call_frame *frame = call_frame;
    if (answer_metadata(frame)) return NULL;
    const xla_api *api = frame->api;
    if (api && (api->version.major != XLA_MAJOR || api->version.minor < XLA_MINOR)) {
        return error_of(api, XLA_UNIMPLEMENTED,
                        "pyce: this version of XLA's foreign function interface is not supported");
    }
    /* If `arguments` had more fields, `results` would not be where it is declared. */
    if (frame->struct_size < sizeof *frame || frame->arguments.struct_size != sizeof(xla_values) ||
        frame->results.struct_size < sizeof(xla_values)) {
        return error_of(
            api, XLA_UNIMPLEMENTED,
            "pyce: a structure of XLA's foreign function interface has an unknown size");
    }
    if (frame->stage != XLA_EXECUTE) return NULL;
    call c;
    if (!find_buffers(frame, &c)) {
        return error_of(api, XLA_INVALID_ARGUMENT,
                        "pyce: the number of arguments and results is wrong, or one is no buffer");
    }
    pyce_problem p;
    const char *wrong = read_call(&c, &p);
    if (wrong) return error_of(api, XLA_INVALID_ARGUMENT, wrong);
    const pyce_fpenv before =
        pyce_fpenv_enter(); /* XLA's threads may flush subnormal numbers to 0 */
    const int status = run_call(&c, &p);
    pyce_fpenv_leave(before);
    if (status == PYCE_OK) return NULL;
    return error_of(api, status == PYCE_NO_MEMORY ? XLA_RESOURCE_EXHAUSTED : XLA_INTERNAL,
                    status == PYCE_NO_MEMORY ? "pyce: out of memory"
                                             : "pyce: a buffer is missing, misaligned or overlaps");
}
