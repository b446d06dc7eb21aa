/* Cross-entropy as a foreign function of XLA, which `pyce.jax` registers.
 *
 * Arguments: logits (…, classes, inner), and labels (…, inner) of 32 or 64 bits or probabilities of the
 * logits' shape. Results: the losses (…, inner), in float64 for float64 logits and else in float32, and on
 * request the gradient of their sum, of the logits' dtype and shape. XLA's buffers are dense and row-major.
 *
 * Labels are read as JAX reads indices: −classes…−1 count from the last class, and a row whose label is
 * outside −classes…classes−1 has the loss NaN and the gradient softmax(logits), as if the label's own
 * logit did not depend on the logits.
 *
 * XLA calls from threads of its own, without Python's lock, and any number of times at once.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "xla_ffi.h"

static _Atomic int most_threads = 1;

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

/* Fill `p` from a call. Returns NULL, or what is wrong. */
static const char *read_call(const xla_call_frame *frame, pyce_problem *p) {
    const xla_values *in = &frame->arguments, *out = &frame->results;
    if (in->size != 2 || out->size < 1 || out->size > 2) {
        return "pyce: expected two arguments and one or two results";
    }
    const xla_buffer *logits = buffer_at(in, 0), *target = buffer_at(in, 1);
    const xla_buffer *losses = buffer_at(out, 0);
    const xla_buffer *grad = out->size == 2 ? buffer_at(out, 1) : NULL;
    if (!logits || !target || !losses || (out->size == 2 && !grad)) {
        return "pyce: every argument and result must be a buffer";
    }
    const int dtype = dtype_of(logits->dtype), probs_dtype = dtype_of(target->dtype);
    const int index = target->dtype == XLA_S32 || target->dtype == XLA_S64;
    if (dtype < 0) return "pyce: logits must be float32, float64, float16 or bfloat16";
    if (!index && probs_dtype < 0) {
        return "pyce: labels must be int32 or int64, or probabilities of a floating dtype";
    }
    if (losses->dtype != (dtype == PYCE_FLOAT64 ? XLA_F64 : XLA_F32)) {
        return "pyce: losses must be float64 for float64 logits, else float32";
    }
    if (logits->rank < 2) return "pyce: logits must have a class axis and one after it";
    if (index ? !is_row_shape(target, logits) : !same_shape(target, logits)) {
        return "pyce: the shape of the labels does not match that of the logits";
    }
    if (!is_row_shape(losses, logits)) return "pyce: the shape of the losses is wrong";
    if (grad && (grad->dtype != logits->dtype || !same_shape(grad, logits))) {
        return "pyce: the gradient must have the dtype and the shape of the logits";
    }
    int64_t outer = 1, stride;
    const int64_t classes = logits->dims[logits->rank - 2], inner = logits->dims[logits->rank - 1];
    for (int64_t i = 0; i < logits->rank - 2; i++) {
        if (logits->dims[i] < 0 || __builtin_mul_overflow(outer, logits->dims[i], &outer)) {
            return "pyce: the logits are too large";
        }
    }
    if (classes < 1 || inner < 0 || __builtin_mul_overflow(classes, inner, &stride)) {
        return "pyce: logits must have at least one class";
    }
    *p = (pyce_problem){
        .operation = grad ? PYCE_FORWARD_BACKWARD : PYCE_FORWARD,
        .dtype = dtype,
        .target = !index                     ? PYCE_PROBABILITIES
                  : target->dtype == XLA_S64 ? PYCE_INDEX64
                                             : PYCE_INDEX32,
        .probs_dtype = index ? PYCE_FLOAT32 : probs_dtype,
        .reduction = PYCE_NONE,
        .threads = most_threads,
        .outer = outer,
        .classes = classes,
        .inner = inner,
        .logits = {.data = logits->data, .outer_stride = stride, .class_stride = inner},
        .labels = index ? target->data : NULL,
        .grad_loss = 1.0,
        .ignore_index = INT64_MIN,
        .losses = losses->data,
    };
    const pyce_operand dense = {.outer_stride = stride, .class_stride = inner};
    if (grad) {
        p->result = dense;
        p->result.data = grad->data;
    }
    if (!index) {
        p->probs = dense;
        p->probs.data = target->data;
    }
    return NULL;
}

/* -- labels that are not in 0…classes−1 ------------------------------------------------------------ */

/* Write the loss NaN and the gradient softmax(logits) of one row. */
static int write_unlabelled(const pyce_problem *p, int64_t row) {
    if (p->dtype == PYCE_FLOAT64) {
        ((double *)p->losses)[row] = __builtin_nan("");
    } else {
        ((float *)p->losses)[row] = __builtin_nanf("");
    }
    if (!p->result.data) return PYCE_OK;
    const int64_t first = row / p->inner * p->logits.outer_stride + row % p->inner;
    const size_t offset = (size_t)first * pyce_item_size(p->dtype);
    pyce_problem softmax = {
        .operation = PYCE_SOFTMAX,
        .dtype = p->dtype,
        .reduction = PYCE_NONE,
        .threads = p->threads,
        .outer = 1,
        .classes = p->classes,
        .inner = 1,
        .logits = {.data = (char *)p->logits.data + offset, .class_stride = p->inner},
        .result = {.data = (char *)p->result.data + offset, .class_stride = p->inner},
    };
    return pyce_run(&softmax);
}

/* Run a problem some of whose labels are outside 0…classes−1. */
static int run_any_labels(pyce_problem *p) {
    const int64_t rows = p->outer * p->inner;
    int64_t *labels = malloc((size_t)rows * sizeof *labels);
    if (!labels) return PYCE_NO_MEMORY;
    for (int64_t i = 0; i < rows; i++) {
        int64_t label = p->target == PYCE_INDEX64 ? ((const int64_t *)p->labels)[i]
                                                  : ((const int32_t *)p->labels)[i];
        if (label < 0 && label >= -p->classes) label += p->classes;
        labels[i] = label < 0 || label >= p->classes ? p->ignore_index : label;
    }
    p->target = PYCE_INDEX64;
    p->labels = labels;
    int status = pyce_run(p);
    for (int64_t i = 0; i < rows && status == PYCE_OK; i++) {
        if (labels[i] == p->ignore_index) status = write_unlabelled(p, i);
    }
    free(labels);
    return status;
}

/* -- the handler ----------------------------------------------------------------------------------- */

/* An error for XLA. NULL, which means success, only if XLA gave no function to make one. */
static xla_error *error_of(const xla_api *api, int code, const char *message) {
    if (!api || api->struct_size < sizeof *api || !api->create_error) return NULL;
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
    if (frame->struct_size < sizeof *frame || frame->arguments.struct_size < sizeof(xla_values) ||
        frame->results.struct_size < sizeof(xla_values)) {
        return error_of(api, XLA_UNIMPLEMENTED,
                        "pyce: a structure of XLA's foreign function interface is too small");
    }
    if (frame->stage != XLA_EXECUTE) return NULL;
    pyce_problem p;
    const char *wrong = read_call(frame, &p);
    if (wrong) return error_of(api, XLA_INVALID_ARGUMENT, wrong);
    int status = pyce_run(&p);
    if (status == PYCE_BAD_LABEL) status = run_any_labels(&p);
    if (status == PYCE_OK) return NULL;
    return error_of(api, status == PYCE_NO_MEMORY ? XLA_RESOURCE_EXHAUSTED : XLA_INTERNAL,
                    status == PYCE_NO_MEMORY ? "pyce: out of memory"
                                             : "pyce: a buffer is missing, misaligned or overlaps");
}
