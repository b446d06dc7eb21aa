/* Repeats the calls of the C interface that tests/golden.py recorded, on every instruction set of the
 * machine, and compares the results byte for byte (any NaN equals any other).
 *
 *     python tests/golden.py --record - | replay [-x] [-c BYTES] [INSTRUCTION SET]…
 *
 * -x stops at the first difference. -c sets the assumed size of the last-level cache, which decides how
 * results are stored and whether exponentials are saved, but changes no byte of a result.
 *
 * The program serves machines without Python (emulated ones), sanitizers and valgrind: every array is an
 * allocation of exactly its size, and results are filled with a pattern before the call.
 * tests/recording.py describes the format of a recording.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif

#include "pyce.h"
#include "pyce_bench.h"

enum { RUN, CROSS_ENTROPY, BERNOULLI, SELECTIVE };
enum { PATTERN = 0xA5 };

static const int64_t item_size[] = {4, 8, 2, 2};
static uint64_t calls, wrong;
static int stops;

/* -- reading ------------------------------------------------------------------------------------------ */

static void get(void *to, size_t size) {
    if (fread(to, 1, size, stdin) != size) {
        fprintf(stderr, "the recording ends in the middle of call %" PRIu64 "\n", calls);
        exit(2);
    }
}

static int64_t integer(void) {
    int64_t value;
    get(&value, sizeof value);
    return value;
}

static double real(void) {
    double value;
    get(&value, sizeof value);
    return value;
}

static void *allocated(int64_t size) {
    void *memory = size < 0 ? NULL : malloc((size_t)size + !size);
    if (size >= 0 && !memory) {
        fprintf(stderr, "no memory for %" PRId64 " bytes\n", size);
        exit(2);
    }
    return memory;
}

typedef struct {
    int64_t size; /* in bytes; −1: NULL */
    unsigned char *data;
} array;

static array read_array(void) {
    array a = {.size = integer()};
    a.data = allocated(a.size);
    if (a.size > 0) get(a.data, (size_t)a.size);
    return a;
}

static array copy_of(array a) {
    array copy = {a.size, allocated(a.size)};
    if (a.size > 0) memcpy(copy.data, a.data, (size_t)a.size);
    return copy;
}

static array patterned(int64_t size) {
    array a = {size, allocated(size)};
    if (size > 0) memset(a.data, PATTERN, (size_t)size);
    return a;
}

/* After an error every output is unchanged: here, it is the pattern. */
static void unwritten_after_error(int64_t status, array expected) {
    if (status != PYCE_OK && expected.size > 0) {
        memset(expected.data, PATTERN, (size_t)expected.size);
    }
}

typedef struct {
    int64_t base; /* element at which `data` of the operand points */
    int64_t outer_stride, class_stride;
    array offsets, elements;
    int patterned;
} operand;

static operand read_operand(int to_be_written) {
    operand o = {0};
    o.base = integer();
    o.offsets.size = o.elements.size = -1;
    if (o.base < 0) return o;
    o.outer_stride = integer();
    o.class_stride = integer();
    o.offsets = read_array();
    const int contiguous = !to_be_written || integer(); /* if not, the gaps have contents to keep */
    o.patterned = to_be_written && contiguous;
    o.elements = o.patterned ? patterned(integer()) : read_array();
    return o;
}

static pyce_operand operand_in(const operand *o, array elements, int64_t size) {
    if (o->base < 0) return (pyce_operand){0};
    return (pyce_operand){elements.data + o->base * size, (const int64_t *)o->offsets.data,
                          o->outer_stride, o->class_stride};
}

/* -- comparing ---------------------------------------------------------------------------------------- */

static int is_nan(const unsigned char *at, int dtype) {
    static const uint64_t infinity[] = {0x7f800000, 0x7ff0000000000000, 0x7c00, 0x7f80};
    uint64_t bits = 0;
    memcpy(&bits, at, (size_t)item_size[dtype]); /* little-endian */
    const uint64_t sign = (uint64_t)1 << (8 * item_size[dtype] - 1);
    return (bits & ~sign) > infinity[dtype];
}

static void compare(const char *what, const char *isa, array got, array expected, int dtype) {
    const int64_t size = item_size[dtype];
    for (int64_t at = 0; at < expected.size; at += size) {
        if (!memcmp(got.data + at, expected.data + at, (size_t)size)) continue;
        if (is_nan(got.data + at, dtype) && is_nan(expected.data + at, dtype)) continue;
        if (wrong++ < 20) {
            fprintf(stderr, "call %" PRIu64 ", %s: %s differs at element %" PRId64 "\n", calls, isa,
                    what, at / size);
        }
        return;
    }
}

static int loss_dtype(int dtype) { return dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32; }

static void compare_doubles(const char *isa, double got, double expected) {
    const array a = {8, (unsigned char *)&got}, b = {8, (unsigned char *)&expected};
    compare("the loss", isa, a, b, PYCE_FLOAT64);
}

static void compare_status(const char *isa, int status, int64_t expected_status) {
    if (status == expected_status) return;
    if (wrong++ < 20) {
        fprintf(stderr, "call %" PRIu64 ", %s: status %d, not %" PRId64 "\n", calls, isa, status,
                expected_status);
    }
}

/* -- the calls ---------------------------------------------------------------------------------------- */

static void replay_run(const char *const *isas) {
    pyce_problem p = {0};
    p.operation = (int32_t)integer();
    p.dtype = (int32_t)integer();
    p.target = (int32_t)integer();
    p.probs_dtype = (int32_t)integer();
    p.reduction = (int32_t)integer();
    p.threads = (int32_t)integer();
    p.outer = integer();
    p.classes = integer();
    p.inner = integer();
    p.ignore_index = integer();
    p.grad_loss = real();
    p.normalizer = real();
    p.smoothing = real();
    p.lse_square_scale = real();
    const int64_t size = item_size[p.dtype];
    operand logits = read_operand(0);
    const int in_place = (int)integer();
    operand result = read_operand(1);
    operand probs = read_operand(0);
    array given[] = {read_array(), read_array(), read_array(), read_array()};
    array lse = read_array(), losses = read_array(), reduced = read_array();
    const int64_t status = integer(), bad_row = integer(), bad_value = integer();
    const double loss = real();
    array expected[4] = {{-1, NULL}};
    if (result.base >= 0) expected[0] = read_array();
    for (int i = 1; i < 4; i++) expected[i] = read_array();
    if (!in_place && result.patterned) unwritten_after_error(status, expected[0]);

    p.labels = given[0].data;
    p.weight = (const double *)given[1].data;
    p.sample_weight = (const double *)given[2].data;
    p.grad_losses = (const double *)given[3].data;
    p.probs = operand_in(&probs, probs.elements, item_size[p.probs_dtype]);
    for (; *isas; isas++) {
        pyce_set_isa(*isas);
        array x = copy_of(logits.elements), written = {-1, NULL};
        if (!in_place && result.base >= 0) written = copy_of(result.elements);
        array l = copy_of(lse), rows = copy_of(losses), one = copy_of(reduced);
        p.logits = operand_in(&logits, x, size);
        p.result = in_place ? p.logits : operand_in(&result, written, size);
        p.lse = (double *)l.data;
        p.losses = rows.data;
        p.reduced = one.data;
        compare_status(*isas, pyce_run(&p), status);
        compare_doubles(*isas, p.loss, loss);
        if (p.bad_row != bad_row || p.bad_value != bad_value) wrong++;
        compare("the result", *isas, in_place ? x : written, expected[0], p.dtype);
        compare("lse", *isas, l, expected[1], PYCE_FLOAT64);
        compare("the losses", *isas, rows, expected[2], loss_dtype(p.dtype));
        compare("the reduced loss", *isas, one, expected[3], loss_dtype(p.dtype));
        free(one.data);
        free(x.data);
        free(written.data);
        free(l.data);
        free(rows.data);
    }
    operand *operands[] = {&logits, &result, &probs};
    for (int i = 0; i < 3; i++) {
        free(operands[i]->offsets.data);
        free(operands[i]->elements.data);
    }
    for (int i = 0; i < 4; i++) {
        free(expected[i].data);
        free(given[i].data);
    }
    free(lse.data);
    free(losses.data);
    free(reduced.data);
}

static void replay_cross_entropy(const char *const *isas) {
    const int operation = (int)integer(), dtype = (int)integer(), reduction = (int)integer();
    const int threads = (int)integer();
    const int64_t outer = integer(), classes = integer(), inner = integer(), ignore = integer();
    const double smoothing = real();
    array x = read_array(), y = read_array(), w = read_array();
    const int has_grad = (int)integer();
    const int64_t status = integer();
    array loss = read_array(), expected = read_array();
    unwritten_after_error(status, loss);
    unwritten_after_error(status, expected);
    for (; *isas; isas++) {
        pyce_set_isa(*isas);
        array grad = patterned(has_grad ? x.size : -1), got_loss = patterned(loss.size);
        const int got =
            pyce_cross_entropy(operation, dtype, reduction, threads, outer, classes, inner, x.data,
                               (const int64_t *)y.data, (const double *)w.data, grad.data,
                               smoothing, ignore, got_loss.data);
        compare_status(*isas, got, status);
        compare("the loss", *isas, got_loss, loss, loss_dtype(dtype));
        if (has_grad) compare("the gradient", *isas, grad, expected, dtype);
        free(grad.data);
        free(got_loss.data);
    }
    free(x.data);
    free(y.data);
    free(w.data);
    free(loss.data);
    free(expected.data);
}

static void replay_bernoulli(const char *const *isas) {
    const int dtype = (int)integer();
    const int64_t n = integer();
    const int threads = (int)integer();
    const double scale = real();
    array given[6];
    for (int i = 0; i < 6; i++) given[i] = read_array();
    const int64_t status = integer();
    const double total = real();
    array expected[] = {read_array(), read_array()};
    for (; *isas; isas++) {
        pyce_set_isa(*isas);
        array losses = patterned(given[4].size), grad = patterned(given[5].size);
        double got_total = 0;
        const int got = pyce_binary_cross_entropy(dtype, n, given[0].data, given[1].data,
                                                  given[2].data, given[3].data, losses.data,
                                                  grad.data, scale, threads, &got_total);
        compare_status(*isas, got, status);
        compare_doubles(*isas, got_total, total);
        compare("the losses", *isas, losses, expected[0], dtype);
        compare("the gradient", *isas, grad, expected[1], dtype);
        free(losses.data);
        free(grad.data);
    }
    for (int i = 0; i < 6; i++) free(given[i].data);
    for (int i = 0; i < 2; i++) free(expected[i].data);
}

static void replay_selective(const char *const *isas) {
    pyce_selective s = {0};
    s.dtype = (int32_t)integer();
    s.threads = (int32_t)integer();
    s.outer = integer();
    s.classes = integer();
    s.inner = integer();
    s.chosen = integer();
    s.temperature = real();
    operand logits = read_operand(0);
    array index = read_array();
    s.logits = operand_in(&logits, logits.elements, item_size[s.dtype]);
    s.index = (const int64_t *)index.data;
    const int64_t status = integer();
    static const char *const names[] = {"log p", "the entropy", "softmax", "log softmax"};
    const int loss = loss_dtype(s.dtype);
    const int dtypes[] = {loss, loss, PYCE_FLOAT64, PYCE_FLOAT64};
    array expected[4];
    for (int i = 0; i < 4; i++) {
        expected[i] = read_array();
        unwritten_after_error(status, expected[i]);
    }
    for (; *isas; isas++) {
        pyce_set_isa(*isas);
        array got[4];
        for (int i = 0; i < 4; i++) got[i] = patterned(expected[i].size);
        s.log_probs = got[0].data;
        s.entropy = got[1].data;
        s.softmax = (double *)got[2].data;
        s.log_softmax = (double *)got[3].data;
        compare_status(*isas, pyce_selective_log_softmax(&s), status);
        for (int i = 0; i < 4; i++) {
            compare(names[i], *isas, got[i], expected[i], dtypes[i]);
            free(got[i].data);
        }
    }
    free(logits.offsets.data);
    free(logits.elements.data);
    free(index.data);
    for (int i = 0; i < 4; i++) free(expected[i].data);
}

int main(int argc, char **argv) {
    enum { MOST = 8 };
    const char *isas[MOST + 1] = {NULL};
    char **named = argv + (argc > 0);
    for (; *named && **named == '-'; named++) {
        if (!strcmp(*named, "-x")) {
            stops = 1;
        } else if (!strcmp(*named, "-c") && named[1]) {
            pyce_set_cache(atoll(*++named));
        } else {
            fprintf(stderr, "usage: %s [-x] [-c BYTES] [INSTRUCTION SET]...\n", *argv);
            return 2;
        }
    }
    const int all = !*named;
    for (int i = 0; i < MOST; i++) {
        isas[i] = all ? pyce_isa(i) : named[i];
        if (!isas[i]) break;
        if (pyce_set_isa(isas[i]) != PYCE_OK) {
            fprintf(stderr, "this machine does not support the instruction set %s\n", isas[i]);
            return 2;
        }
    }
    pyce_set_thread_thresholds(1 << 10, 1 << 10); /* threads share small work as well */
#if defined(_WIN32)
    _setmode(_fileno(stdin), _O_BINARY);
#endif
    char magic[8];
    get(magic, sizeof magic);
    if (memcmp(magic, "PYCECALL", 8)) {
        fputs("the input is not a recording\n", stderr);
        return 2;
    }
    int64_t kind;
    while (fread(&kind, sizeof kind, 1, stdin) == 1) {
        switch (kind) {
        case RUN: replay_run(isas); break;
        case CROSS_ENTROPY: replay_cross_entropy(isas); break;
        case BERNOULLI: replay_bernoulli(isas); break;
        case SELECTIVE: replay_selective(isas); break;
        default: fprintf(stderr, "call %" PRIu64 " has an unknown kind\n", calls); return 2;
        }
        calls++;
        if (stops && wrong) break;
    }
    printf("%" PRIu64 " calls, %" PRIu64 " differences:", calls, wrong);
    for (int i = 0; isas[i]; i++) printf(" %s", isas[i]);
    puts("");
    return wrong || !calls;
}
