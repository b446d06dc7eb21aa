/* Makes calls of the C interface from arbitrary bytes. No call may access memory that it must not, all
 * instruction sets must give the same bytes, and after an error every output must be unchanged.
 *
 * Built with clang's -fsanitize=fuzzer it is driven by libFuzzer, which is guided by code coverage:
 *
 *     fuzz [libFuzzer's options] [folder of inputs]
 *
 * Built with -DSTANDALONE, by any compiler, it uses random bytes: `fuzz SECONDS [SEED]`.
 *
 * Every array is an allocation of exactly the size that the call may use, at any alignment, so that
 * AddressSanitizer detects an access one byte beyond it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pyce.h"
#include "pyce_bench.h"

enum { MOST_ELEMENTS = 15000, MOST_ISAS = 8, UNTOUCHED = 0x5a };

static const int64_t item_size[] = {4, 8, 2, 2};
static const char *isas[MOST_ISAS + 1];

/* -- bytes that decide; zeros after the last one --------------------------------------------------- */

typedef struct {
    const uint8_t *at;
    size_t left;
} bytes;

static uint8_t byte(bytes *b) {
    if (!b->left) return 0;
    b->left--;
    return *b->at++;
}

static int64_t below(bytes *b, int64_t limit) {
    uint64_t value = 0;
    for (int64_t size = 1; size < limit; size *= 256) value = value * 256 + byte(b);
    return (int64_t)(value % (uint64_t)limit);
}

static uint64_t word(bytes *b) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value * 256 + byte(b);
    return value;
}

static double any_double(bytes *b) {
    const uint64_t bits = word(b);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* -- allocations of exact size -------------------------------------------------------------------------- */

enum { MOST_ARRAYS = 128 };
static void *allocations[MOST_ARRAYS];
static int allocated;

/* `size` bytes that end where their allocation ends and begin `shift` bytes after its start. */
static void *exactly(int64_t size, int shift) {
    char *memory = malloc((size_t)(size + shift) + 1 - (size + shift > 0));
    if (!memory || allocated == MOST_ARRAYS) abort();
    allocations[allocated++] = memory;
    return memory + shift;
}

static void free_all(void) {
    while (allocated) free(allocations[--allocated]);
}

/* Random bits from a seed in the input, so that a short input can fill long arrays. */
static uint64_t state;
static uint64_t next_bits(void) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void put(void *at, int dtype, double value) {
    if (dtype == PYCE_FLOAT32) {
        const float narrow = (float)value;
        memcpy(at, &narrow, 4);
    } else if (dtype == PYCE_FLOAT64) {
        memcpy(at, &value, 8);
    } else {
        /* The high half of a float is a bfloat16; as a float16 it is just some number. */
        const float narrow = (float)value;
        memcpy(at, (const char *)&narrow + 2, 2);
    }
}

/* Numbers of one of several kinds: small, large, any bits, small with special values among them. */
static void fill(void *data, int dtype, int64_t count, int kind) {
    static const double special[] = {0.0,  -0.0, 1e30, -1e30,     1e-40,      1e308,
                                     -1e9, 88.0, -104, 1.0 / 0.0, -1.0 / 0.0, 0.0 / 0.0};
    for (int64_t i = 0; i < count; i++) {
        char *at = (char *)data + i * item_size[dtype];
        const uint64_t bits = next_bits();
        const double unit = (double)(bits >> 11) * 0x1p-53;
        switch (kind) {
        case 0: put(at, dtype, 12 * unit - 6); break;
        case 1: put(at, dtype, 2000 * unit - 1000); break;
        case 2: memcpy(at, &bits, (size_t)item_size[dtype]); break;
        case 3: put(at, dtype, bits % 16 ? 12 * unit - 6 : special[bits / 16 % 12]); break;
        default: put(at, dtype, 1e4 + unit); break;
        }
    }
}

static double *doubles(bytes *b, int64_t count) {
    const int kind = (int)below(b, 5);
    double *data = exactly(8 * count, (int)(8 * below(b, 8)));
    fill(data, PYCE_FLOAT64, count, kind);
    return data;
}

/* An offset of 0…63 bytes from an aligned address that keeps elements of `size` bytes aligned. */
static int shift_of(bytes *b, int64_t size) { return (int)(below(b, 64 / size) * size); }

/* Memory for (outer, classes, inner) with strides of some kind. */
typedef struct {
    pyce_operand operand;
    char *memory;
    int64_t count; /* elements, gaps included */
} place;

static place lay_out(bytes *b, const pyce_problem *p, int64_t size) {
    enum { PLAIN, GAPS, BACKWARD, CLASSES_FIRST, OFFSETS };
    const int64_t outer = p->outer, classes = p->classes, inner = p->inner;
    const int kind = (int)below(b, 5);
    place made = {.count = outer * classes * inner};
    pyce_operand *o = &made.operand;
    int64_t first = 0;
    o->class_stride = inner;
    o->outer_stride = classes * inner;
    if (kind == GAPS || kind == BACKWARD) {
        o->class_stride += below(b, 4);
        o->outer_stride = classes * o->class_stride + below(b, 4);
        made.count = outer * o->outer_stride;
    }
    if (kind == BACKWARD && outer) {
        first = made.count - o->outer_stride;
        o->outer_stride = -o->outer_stride;
    }
    if (kind == CLASSES_FIRST && inner == 1) {
        o->class_stride = outer;
        o->outer_stride = 1;
    }
    if (kind == OFFSETS) {
        int64_t *offsets = exactly(8 * outer, 0);
        for (int64_t i = 0; i < outer; i++) offsets[i] = (outer - 1 - i) * o->outer_stride;
        o->offsets = offsets;
        o->outer_stride = INT64_MIN; /* not used */
    }
    made.memory = exactly(made.count * size, shift_of(b, size));
    memset(made.memory, UNTOUCHED, (size_t)(made.count * size));
    o->data = made.memory + first * size;
    return made;
}

/* -- one call on every instruction set ------------------------------------------------------------------ */

/* An output: its address, its contents before the call, and those from the first instruction set. */
typedef struct {
    char *at, *before, *first;
    int64_t size;
    int dtype;
} output;

static output watch(void *at, int64_t count, int dtype) {
    if (!at) return (output){0};
    const int64_t size = count * item_size[dtype];
    output o = {at, exactly(size, 0), exactly(size, 0), size, dtype};
    memcpy(o.before, at, (size_t)size);
    return o;
}

static int is_nan(const char *at, int dtype) {
    static const uint64_t infinity[] = {0x7f800000, 0x7ff0000000000000, 0x7c00, 0x7f80};
    uint64_t bits = 0;
    memcpy(&bits, at, (size_t)item_size[dtype]); /* little-endian */
    return (bits & ~((uint64_t)1 << (8 * item_size[dtype] - 1))) > infinity[dtype];
}

/* Whether bytes are equal, where any NaN equals any other. */
static int same(const char *a, const char *b, int64_t size, int dtype) {
    if (!memcmp(a, b, (size_t)size)) return 1;
    for (int64_t at = 0; at < size; at += item_size[dtype]) {
        if (!memcmp(a + at, b + at, (size_t)item_size[dtype])) continue;
        if (!is_nan(a + at, dtype) || !is_nan(b + at, dtype)) return 0;
    }
    return 1;
}

/* Calls on each instruction set must give the same status and bytes, and write nothing on an error. */
static void run_all(int (*call)(void *), void *context, output *outputs, int count) {
    int expected = 0;
    for (int i = 0; isas[i]; i++) {
        pyce_set_isa(isas[i]);
        for (int k = 0; k < count; k++) {
            if (outputs[k].at) memcpy(outputs[k].at, outputs[k].before, (size_t)outputs[k].size);
        }
        const int status = call(context);
        if (i == 0) expected = status;
        if (status != expected) {
            fprintf(stderr, "%s: status %d, not %d\n", isas[i], status, expected);
            abort();
        }
        for (int k = 0; k < count; k++) {
            output *o = outputs + k;
            if (!o->at) continue;
            if (i == 0) memcpy(o->first, status ? o->before : o->at, (size_t)o->size);
            if (same(o->at, o->first, o->size, o->dtype)) continue;
            fprintf(stderr, "%s: output %d differs from that %s\n", isas[i], k,
                    status ? "before the error" : "with the first instruction set");
            abort();
        }
    }
}

static int call_run(void *context) { return pyce_run(context); }

/* A problem with valid sizes and arbitrary numbers. */
static void fuzz_run(bytes *b) {
    pyce_problem p = {0};
    const uint8_t flags = byte(b), more = byte(b);
    p.operation = (int32_t)below(b, 6);
    p.dtype = (int32_t)below(b, 4);
    p.probs_dtype = (int32_t)below(b, 4);
    p.reduction = (int32_t)below(b, 4);
    p.threads = 1 + (int32_t)below(b, 4);
    p.classes = 1 + below(b, flags & 1 ? 5000 : 140);
    p.inner = flags & 2 ? below(b, 40) : 1;
    p.outer = below(b, 80);
    while (p.outer * p.inner * p.classes > MOST_ELEMENTS) {
        if (p.outer > 1)
            p.outer /= 2;
        else
            p.inner /= 2;
    }
    const int64_t rows = p.outer * p.inner, size = item_size[p.dtype];
    state = word(b);

    const int kind = (int)below(b, 5);
    const bytes here = *b;
    place logits = lay_out(b, &p, size), result = {0};
    fill(logits.memory, p.dtype, logits.count, kind);
    p.logits = logits.operand;
    if (p.operation != PYCE_FORWARD && p.operation != PYCE_LOGSUMEXP) {
        bytes again = here; /* gives the strides of the logits once more */
        result = flags & 4 ? logits : lay_out(flags & 8 ? &again : b, &p, size);
        p.result = result.operand;
    }
    if (p.operation <= PYCE_BACKWARD) {
        p.target = 1 + (int32_t)below(b, 3);
        if (p.target == PYCE_PROBABILITIES) {
            place probs = lay_out(b, &p, item_size[p.probs_dtype]);
            fill(probs.memory, p.probs_dtype, probs.count, (int)below(b, 5));
            p.probs = probs.operand;
        } else {
            const int64_t item = p.target == PYCE_INDEX32 ? 4 : 8;
            char *labels = exactly(rows * item, shift_of(b, item));
            for (int64_t i = 0; i < rows; i++) {
                const uint64_t bits = next_bits();
                int64_t y = (int64_t)(bits % (uint64_t)p.classes);
                if (more & 1 && bits >> 60 == 0) y = -100;
                if (more & 2 && bits >> 56 == 1) y = (int64_t)bits;
                if (more & 4 && bits >> 56 == 2) y = p.classes;
                memcpy(labels + i * item, &y, (size_t)item); /* little-endian */
            }
            p.labels = labels;
            p.ignore_index = more & 8 ? (int64_t)(next_bits() % 7) : -100;
        }
        if (more & 16) p.weight = doubles(b, p.classes);
        if (more & 32) p.sample_weight = doubles(b, rows);
        if (more & 64 && p.operation != PYCE_FORWARD) p.grad_losses = doubles(b, rows);
        p.smoothing = flags & 16 ? 0.1 : flags & 32 ? any_double(b) : 0;
        p.lse_square_scale = flags & 8 ? flags & 32 ? any_double(b) : 1e-3 : 0;
        p.grad_loss = more & 128 ? any_double(b) : 1;
        p.normalizer = flags & 64 ? any_double(b) : 7;
    }
    const int needs_lse = p.operation == PYCE_BACKWARD || p.operation == PYCE_LOGSUMEXP;
    if (needs_lse || (p.operation <= PYCE_BACKWARD && flags & 128)) p.lse = doubles(b, rows);
    const int loss_dtype = p.dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    if (p.operation <= PYCE_FORWARD_BACKWARD && p.reduction == PYCE_NONE) {
        p.losses = exactly(rows * item_size[loss_dtype], shift_of(b, item_size[loss_dtype]));
        memset(p.losses, UNTOUCHED, (size_t)(rows * item_size[loss_dtype]));
    }
    const uint8_t last = byte(b);
    if (p.operation < PYCE_BACKWARD && !p.losses && last & 2)
        p.reduced = exactly(item_size[loss_dtype], 0);
    if (p.reduced) memset(p.reduced, UNTOUCHED, (size_t)item_size[loss_dtype]);
    pyce_set_cache(last & 1);
    output outputs[] = {watch(result.memory, result.count, p.dtype),
                        watch(p.lse, rows, PYCE_FLOAT64), watch(p.losses, rows, loss_dtype),
                        watch(p.reduced, 1, loss_dtype)};
    run_all(call_run, &p, outputs, 4);
}

enum { MOST_SHARDS = 4 };

/* The rows of one problem, cut into shards. */
typedef struct {
    pyce_problem problems[MOST_SHARDS];
    pyce_shards shards[MOST_SHARDS];
    double *states[MOST_SHARDS];
    int count, complete;
} cut_rows;

static int call_shards(void *context) {
    cut_rows *c = context;
    int status = PYCE_OK;
    for (int s = 0; s < c->count && status == PYCE_OK; s++) {
        pyce_problem *p = c->problems + s;
        const double *const *states = (const double *const *)c->states;
        status = c->complete ? pyce_complete(p, c->shards + s, states)
                             : pyce_partial(p, c->shards + s, c->states[s]);
    }
    return status;
}

/* Valid shards of arbitrary numbers. Each array has the size of a shard. */
static void fuzz_shards(bytes *b) {
    cut_rows c = {.count = 1 + (int)below(b, MOST_SHARDS)};
    int64_t bounds[MOST_SHARDS + 1] = {0};
    pyce_problem p = {.inner = 1, .grad_loss = 1, .normalizer = 7, .ignore_index = -100};
    const uint8_t flags = byte(b);
    p.dtype = (int32_t)below(b, 4);
    p.probs_dtype = (int32_t)below(b, 4);
    p.target = 1 + (int32_t)below(b, 3);
    p.reduction = (int32_t)below(b, 4);
    p.threads = 1 + (int32_t)below(b, 4);
    p.outer = below(b, 6);
    for (int s = 0; s < c.count; s++) {
        bounds[s + 1] = bounds[s] + (flags & 1 ? 2048 * below(b, 2) : below(b, 300));
    }
    if (bounds[c.count] == 0) bounds[c.count] = 1;
    p.classes = bounds[c.count];
    p.smoothing = flags & 2 ? 0.1 : flags & 4 ? any_double(b) : 0;
    p.lse_square_scale = flags & 8 ? 1e-3 : 0;
    if (flags & 16) p.normalizer = any_double(b);
    state = word(b);
    if (flags & 32) p.sample_weight = doubles(b, p.outer);
    if (p.target != PYCE_PROBABILITIES) {
        const int64_t item = p.target == PYCE_INDEX32 ? 4 : 8;
        char *labels = exactly(p.outer * item, shift_of(b, item));
        for (int64_t i = 0; i < p.outer; i++) {
            const uint64_t bits = next_bits();
            int64_t y = (int64_t)(bits % (uint64_t)p.classes);
            if (bits >> 60 == 0) y = flags & 64 ? p.classes : -100;
            memcpy(labels + i * item, &y, (size_t)item); /* little-endian */
        }
        p.labels = labels;
    }
    const int loss_dtype = p.dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    output states[MOST_SHARDS], outputs[2 * MOST_SHARDS];
    for (int s = 0; s < c.count; s++) {
        pyce_problem *own = c.problems + s;
        const int64_t classes = bounds[s + 1] - bounds[s];
        c.shards[s] = (pyce_shards){.count = c.count, .own = s, .bounds = bounds};
        *own = p;
        own->classes = classes;
        place logits = {0}, result = {0};
        if (classes) {
            logits = lay_out(b, own, item_size[p.dtype]);
            result = lay_out(b, own, item_size[p.dtype]);
            fill(logits.memory, p.dtype, logits.count, (int)below(b, 5));
            own->operation = PYCE_FORWARD_BACKWARD;
        }
        own->logits = logits.operand;
        own->result = result.operand;
        if (classes && p.target == PYCE_PROBABILITIES) {
            place probs = lay_out(b, own, item_size[p.probs_dtype]);
            fill(probs.memory, p.probs_dtype, probs.count, (int)below(b, 5));
            own->probs = probs.operand;
        }
        own->classes = p.classes;
        if (p.reduction == PYCE_NONE) own->losses = exactly(p.outer * item_size[loss_dtype], 0);
        const int64_t numbers = p.outer * pyce_state_size(own, classes);
        c.states[s] = exactly(8 * numbers, 0);
        states[s] = watch(c.states[s], numbers, PYCE_FLOAT64);
        outputs[2 * s] = watch(result.memory, result.count, p.dtype);
        outputs[2 * s + 1] = watch(own->losses, p.outer, loss_dtype);
    }
    run_all(call_shards, &c, states, c.count);
    c.complete = 1;
    run_all(call_shards, &c, outputs, 2 * c.count);
}

/* A problem with arbitrary fields, which must be refused unless it has no rows. */
static void fuzz_fields(bytes *b) {
    pyce_problem p = {0};
    static float few[64];
    static double rows[64];
    static int64_t labels[64];
    p.operation = (int32_t)word(b);
    p.dtype = (int32_t)below(b, 6) - 1;
    p.target = (int32_t)below(b, 6) - 1;
    p.probs_dtype = (int32_t)below(b, 6) - 1;
    p.reduction = (int32_t)below(b, 6) - 1;
    p.threads = (int32_t)word(b);
    p.outer = (int64_t)word(b) >> below(b, 64);
    p.classes = (int64_t)word(b) >> below(b, 64);
    p.inner = (int64_t)word(b) >> below(b, 64);
    p.smoothing = any_double(b);
    p.lse_square_scale = any_double(b);
    const uint8_t given = byte(b);
    if (given & 1) p.logits.data = few;
    if (given & 2) p.result.data = few;
    if (given & 4) p.probs.data = few;
    if (given & 8) p.labels = labels;
    if (given & 16) p.lse = rows;
    if (given & 32) p.losses = rows;
    /* Valid sizes would need memory: without logits the problem is invalid. */
    int64_t all;
    const int some = p.outer > 0 && p.inner > 0 && p.classes > 0;
    if (some && !__builtin_mul_overflow(p.outer, p.inner, &all) &&
        !__builtin_mul_overflow(all, p.classes, &all) && all <= INT64_MAX / 8) {
        p.logits.data = NULL;
    }
    const double loss = p.loss;
    const int status = pyce_run(&p);
    if (some && status != PYCE_BAD_ARGUMENT) abort();
    if (status && p.loss != loss) abort();
}

static int call_selective(void *context) { return pyce_selective_log_softmax(context); }

/* Rows with a temperature, valid or not, and classes that may be out of range. */
static void fuzz_selective(bytes *b) {
    static const double temperatures[] = {0.7, 1, 3e-5, 1e300, 1e-310, 0, -1, 1.0 / 0.0, 0.0 / 0.0};
    pyce_selective s = {0};
    const uint8_t flags = byte(b);
    s.dtype = (int32_t)below(b, 4);
    s.threads = 1 + (int32_t)below(b, 4);
    /* The shape, for lay_out. */
    pyce_problem p = {.outer = below(b, 30)};
    p.classes = 1 + below(b, flags & 1 ? 3000 : 70);
    p.inner = flags & 2 ? below(b, 8) : 1;
    while (p.outer * p.inner * p.classes > MOST_ELEMENTS) p.outer /= 2;
    s.outer = p.outer;
    s.classes = p.classes;
    s.inner = p.inner;
    const int64_t rows = p.outer * p.inner, kind = below(b, 10);
    s.temperature = kind < 9 ? temperatures[kind] : any_double(b);
    state = word(b);
    place logits = lay_out(b, &p, item_size[s.dtype]);
    fill(logits.memory, s.dtype, logits.count, (int)below(b, 5));
    s.logits = logits.operand;
    const int loss_dtype = s.dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    const int64_t size = item_size[loss_dtype];
    if (flags & 4) {
        s.chosen = below(b, 4);
        int64_t *index = exactly(8 * rows * s.chosen, (int)(8 * below(b, 8)));
        for (int64_t i = 0; i < rows * s.chosen; i++) {
            const uint64_t bits = next_bits();
            index[i] = (int64_t)(bits % (uint64_t)p.classes);
            if (flags & 8 && bits >> 57 == 0) index[i] = bits & 1 ? p.classes : (int64_t)bits;
        }
        s.index = index;
        s.log_probs = exactly(rows * s.chosen * size, shift_of(b, size));
        memset(s.log_probs, UNTOUCHED, (size_t)(rows * s.chosen * size));
    }
    if (flags & 16) {
        s.entropy = exactly(rows * size, shift_of(b, size));
        memset(s.entropy, UNTOUCHED, (size_t)(rows * size));
    }
    if (flags & 32) s.softmax = doubles(b, rows * p.classes);
    if (flags & 64) s.log_softmax = doubles(b, rows * p.classes);
    output outputs[] = {watch(s.log_probs, rows * s.chosen, loss_dtype),
                        watch(s.entropy, rows, loss_dtype),
                        watch(s.softmax, rows * p.classes, PYCE_FLOAT64),
                        watch(s.log_softmax, rows * p.classes, PYCE_FLOAT64)};
    run_all(call_selective, &s, outputs, 4);
}

typedef struct {
    int dtype, threads;
    int64_t n;
    void *x, *t, *w, *pw, *losses, *grad;
    double scale, total;
} bernoulli;

static int call_bernoulli(void *context) {
    bernoulli *c = context;
    c->total = 0;
    return pyce_binary_cross_entropy(c->dtype, c->n, c->x, c->t, c->w, c->pw, c->losses, c->grad,
                                     c->scale, c->threads, &c->total);
}

static void fuzz_bernoulli(bytes *b) {
    bernoulli c = {0};
    const uint8_t flags = byte(b);
    c.dtype = (int)below(b, 2);
    c.n = below(b, flags & 1 ? 20000 : 100);
    c.threads = 1 + (int)below(b, 4);
    c.scale = any_double(b);
    state = word(b);
    const int64_t size = item_size[c.dtype] * c.n;
    const int kind = (int)below(b, 5);
    void **arrays[] = {&c.x, &c.t, &c.w, &c.pw, &c.losses, &c.grad};
    for (int i = 0; i < 6; i++) {
        if (i >= 2 && !(flags >> i & 1)) continue;
        *arrays[i] = exactly(size, shift_of(b, item_size[c.dtype]));
        fill(*arrays[i], c.dtype, c.n, i ? (int)below(b, 5) : kind);
    }
    output outputs[] = {watch(c.losses, c.n, c.dtype), watch(c.grad, c.n, c.dtype),
                        watch(&c.total, 1, PYCE_FLOAT64)};
    run_all(call_bernoulli, &c, outputs, 3);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, size};
    if (!isas[0]) {
        for (int i = 0; i < MOST_ISAS; i++) isas[i] = pyce_isa(i);
        pyce_set_thread_thresholds(1 << 10, 1 << 10);
    }
    switch (below(&b, 8)) {
    case 0: fuzz_bernoulli(&b); break;
    case 1: fuzz_fields(&b); break;
    case 2: fuzz_shards(&b); break;
    case 3: fuzz_selective(&b); break;
    default: fuzz_run(&b);
    }
    free_all();
    return 0;
}

#ifdef STANDALONE
#include <time.h>
int main(int argc, char **argv) {
    const double seconds = argc > 1 ? atof(argv[1]) : 10;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1, inputs = 0;
    const time_t begin = time(NULL);
    while (difftime(time(NULL), begin) < seconds) {
        uint8_t data[256];
        state = seed * 0x2545f4914f6cdd1du + inputs++;
        for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)next_bits();
        LLVMFuzzerTestOneInput(data, sizeof data);
    }
    printf("%llu inputs of seed %llu\n", (unsigned long long)inputs, (unsigned long long)seed);
    return 0;
}
#endif
