/* The exported functions of pyce.h; the choice of an instruction set is in dispatch.c.
 *
 * The Python package has checked its arguments already. The checks here protect callers of the C
 * interface (validate.c). Nothing is written until all checks have passed and all memory is
 * allocated.
 *
 * Everything is computed in the default floating-point environment, which the exported function
 * enters and leaves; the threads of the pool are always in it.
 */
#include "fpenv.h"
#include "internal.h"
#include "kernels/half_types.h"

int pyce_run(pyce_problem *p) {
    if (!p || (uintptr_t)p % _Alignof(pyce_problem)) return PYCE_BAD_ARGUMENT;
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = pyce_problem_is_valid(p) ? pyce_run_problem(p) : PYCE_BAD_ARGUMENT;
    pyce_fpenv_leave(before);
    return status;
}

int64_t pyce_state_size(const pyce_problem *p, int64_t classes) {
    if (!p || (uintptr_t)p % _Alignof(pyce_problem) || classes < 0) return 0;
    return pyce_state_head(p) + pyce_blocks_of(classes) * pyce_block_numbers(p);
}

int pyce_partial(pyce_problem *p, const pyce_shards *shards, double *state) {
    if (!p || (uintptr_t)p % _Alignof(pyce_problem)) return PYCE_BAD_ARGUMENT;
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = pyce_shards_are_valid(p, shards, state, NULL)
                           ? pyce_run_partial(p, shards, state)
                           : PYCE_BAD_ARGUMENT;
    pyce_fpenv_leave(before);
    return status;
}

int pyce_complete(pyce_problem *p, const pyce_shards *shards, const double *const *states) {
    if (!p || (uintptr_t)p % _Alignof(pyce_problem)) return PYCE_BAD_ARGUMENT;
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = pyce_shards_are_valid(p, shards, NULL, states)
                           ? pyce_run_complete(p, shards, states)
                           : PYCE_BAD_ARGUMENT;
    pyce_fpenv_leave(before);
    return status;
}

/* Of contiguous arrays: the strides, and where the loss goes. `half` is NULL, or where the caller
   writes the loss afterwards, rounded to a half type. */
static int run_contiguous(pyce_problem *p, void *loss, const void *half) {
    int64_t stride;
    if (!loss || p->operation < PYCE_FORWARD || p->operation > PYCE_FORWARD_BACKWARD ||
        p->reduction < PYCE_MEAN || p->reduction > PYCE_NONE ||
        __builtin_mul_overflow(p->classes, p->inner, &stride)) {
        return PYCE_BAD_ARGUMENT;
    }
    pyce_operand *operands[] = {&p->logits, &p->result, &p->probs};
    for (int i = 0; i < 3; i++) {
        operands[i]->outer_stride = stride;
        operands[i]->class_stride = p->inner;
    }
    p->grad_loss = 1.0;
    *(p->reduction == PYCE_NONE ? &p->losses : &p->reduced) = loss;
    if (half) {
        const pyce_fpenv before = pyce_fpenv_enter();
        const int is_apart = pyce_is_apart(p, half, sizeof(uint16_t));
        pyce_fpenv_leave(before);
        if (!is_apart) return PYCE_BAD_ARGUMENT;
    }
    return pyce_run(p);
}

int pyce_cross_entropy(int operation, int dtype, int reduction, int threads, int64_t outer,
                       int64_t classes, int64_t inner, const void *logits, const int64_t *labels,
                       const double *weight, void *grad, double smoothing, int64_t ignore_index,
                       void *loss) {
    pyce_problem p = {
        .operation = operation,
        .dtype = dtype,
        .target = PYCE_INDEX64,
        .reduction = reduction,
        .threads = threads,
        .outer = outer,
        .classes = classes,
        .inner = inner,
        .logits = {.data = (void *)(uintptr_t)logits},
        .result = {.data = grad},
        .labels = labels,
        .weight = weight,
        .smoothing = smoothing,
        .ignore_index = ignore_index,
    };
    return run_contiguous(&p, loss, NULL);
}

int pyce_cross_entropy_at(int operation, int dtype, int reduction, int threads, int64_t outer,
                          int64_t classes, int64_t inner, uintptr_t logits, uintptr_t labels,
                          uintptr_t probs, int probs_dtype, uintptr_t weight, uintptr_t grad,
                          double smoothing, int64_t ignore_index, uintptr_t loss, int loss_dtype) {
    const int half = loss_dtype == PYCE_FLOAT16 || loss_dtype == PYCE_BFLOAT16;
    if (half ? dtype == PYCE_FLOAT64 || reduction == PYCE_NONE || !loss
             : loss_dtype != (dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32)) {
        return PYCE_BAD_ARGUMENT;
    }
    pyce_problem p = {
        .operation = operation,
        .dtype = dtype,
        .target = probs ? PYCE_PROBABILITIES : PYCE_INDEX64,
        .probs_dtype = probs_dtype,
        .reduction = reduction,
        .threads = threads,
        .outer = outer,
        .classes = classes,
        .inner = inner,
        .logits = {.data = (void *)logits},
        .result = {.data = (void *)grad},
        .probs = {.data = (void *)probs},
        .labels = (const void *)labels,
        .weight = (const double *)weight,
        .smoothing = smoothing,
        .ignore_index = ignore_index,
    };
    float single;
    const int status =
        half ? run_contiguous(&p, &single, (void *)loss) : run_contiguous(&p, (void *)loss, NULL);
    if (half && status == PYCE_OK) {
        *(uint16_t *)loss = loss_dtype == PYCE_FLOAT16 ? to_f16(single) : to_bf16(single);
    }
    return status;
}

int pyce_scale_at(int dtype, int64_t n, int threads, uintptr_t saved, uintptr_t result,
                  uintptr_t factor, int factor_dtype) {
    const pyce_scaling s = {
        .dtype = dtype,
        .n = n,
        .saved = (const void *)saved,
        .result = (void *)result,
        .factor = (const void *)factor,
        .factor_dtype = factor_dtype,
    };
    if (threads < 1 || !pyce_scaling_is_valid(&s)) return PYCE_BAD_ARGUMENT;
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = pyce_run_scaling(&s, threads);
    pyce_fpenv_leave(before);
    return status;
}

int pyce_binary_cross_entropy(int dtype, int64_t n, const void *logits, const void *target,
                              const void *weight, const void *pos_weight, void *losses, void *grad,
                              double scale, int threads, double *total) {
    const pyce_bernoulli b = {
        .dtype = dtype,
        .n = n,
        .logits = logits,
        .target = target,
        .weight = weight,
        .pos_weight = pos_weight,
        .losses = losses,
        .grad = grad,
        .scale = scale,
    };
    if (threads < 1 || !pyce_bernoulli_is_valid(&b, total)) return PYCE_BAD_ARGUMENT;
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = pyce_run_bernoulli(&b, threads, total);
    pyce_fpenv_leave(before);
    return status;
}

int pyce_selective_log_softmax(const pyce_selective *s) {
    if (!s || (uintptr_t)s % _Alignof(pyce_selective)) return PYCE_BAD_ARGUMENT;
    /* A comparison may set a status flag. */
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = pyce_selective_is_valid(s) ? pyce_run_selective(s) : PYCE_BAD_ARGUMENT;
    pyce_fpenv_leave(before);
    return status;
}

const char *pyce_status_text(int status) {
    switch (status) {
    case PYCE_OK: return "success";
    case PYCE_BAD_LABEL: return "a label is out of range";
    case PYCE_BAD_ARGUMENT: return "an argument is invalid";
    case PYCE_NO_MEMORY: return "out of memory";
    default: return "unknown status";
    }
}

const char *pyce_compiler(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}
