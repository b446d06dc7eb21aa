/* Holds the exponentials and logarithms of vmath.inc.h to their stated bounds, on every instruction
 * set of this machine, and all of them to the same bits.
 *
 *     check_vmath [STEP [WORKERS]]
 *
 * Of the floats in the exponential's range every STEP-th is looked at (1: each), shared by WORKERS
 * processes; of doubles a sample, the smaller the larger STEP. The reference is libm's exp for floats,
 * within 2^-52 of the truth, and its long double functions for doubles, within 2^-62. Prints the
 * largest errors and where they are; the exit status is 1 where a bound is exceeded or bits differ.
 */
#define _GNU_SOURCE
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmath.h"

/* 128 floats of the largest step lie within the range of one maximum. */
enum { MOST_WORKERS = 64, LARGEST_STEP = 10000 };

#define TARGET_OF(target) {&vmath_##target##_f32, &vmath_##target##_f64},
static const struct {
    const vmath_f32 *f32;
    const vmath_f64 *f64;
} all_targets[] = {PYCE_TARGETS(TARGET_OF)};
enum { TARGETS = sizeof all_targets / sizeof *all_targets };

/* Those that this machine supports. */
static const vmath_f32 *floats[TARGETS];
static const vmath_f64 *doubles[TARGETS];
static int count;

/* -- what was found ----------------------------------------------------------------------------- */

enum {
    FLOAT_EXP,
    FLOAT_MAX,
    DOUBLE_EXP,
    BERNOULLI_EXP,
    REDUCED_EXP,
    EXP_OF,
    LOG1P,
    LOG1P_SHORT,
    KINDS
};

typedef struct {
    double worst[KINDS], at[KINDS];
    uint64_t looked_at[KINDS];
    uint64_t differ; /* results whose bits depend on the instruction set */
    uint64_t wrong;  /* values out of range: not zero, not normal, not NaN where they must be */
} findings;

static findings *mine; /* this worker's, in memory shared with the first process */

static void note(int kind, double error, double at) {
    mine->looked_at[kind]++;
    if (!(error <= mine->worst[kind])) { /* NaN is the worst */
        mine->worst[kind] = error == error ? error : INFINITY;
        mine->at[kind] = at;
    }
}

static void wrong(const char *what, const char *name, double x, double max, double got) {
    if (mine->wrong++ < 5)
        printf("%s: %s at %.9g with the maximum %.9g: %.17g\n", name, what, x, max, got);
}

static void compare(const char *name, const void *a, const void *b, size_t size, int n,
                    const double *at) {
    if (memcmp(a, b, size * (size_t)n) == 0) return;
    for (int i = 0; i < n; i++) {
        if (memcmp((const char *)a + size * (size_t)i, (const char *)b + size * (size_t)i, size)) {
            if (mine->differ++ < 5)
                printf("%s and %s differ at %.17g\n", doubles[0]->name, name, at[i]);
        }
    }
}

/* 2^k ≤ |x| < 2^(k+1), as 2^k; x normal. */
static double power_of_two(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= (uint64_t)0x7ff << 52;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* -- floats ------------------------------------------------------------------------------------- */

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* `x` relative to the maximum `max`, all within the range. */
static void check_floats(const float *x, float max) {
    float e[FLOATS], exponents[FLOATS];
    double at[FLOATS], maxima[FLOATS];
    for (int i = 0; i < FLOATS; i++) at[i] = x[i];
    const double exponent = floats[0]->exps(x, max, e);
    floats[0]->maxima(x, maxima, exponents);
    for (int d = 1; d < count; d++) {
        float e2[FLOATS], exponents2[FLOATS];
        double maxima2[FLOATS];
        const double exponent2 = floats[d]->exps(x, max, e2);
        floats[d]->maxima(x, maxima2, exponents2);
        compare(doubles[d]->name, &exponent, &exponent2, sizeof exponent, 1, at);
        compare(doubles[d]->name, e, e2, sizeof *e, FLOATS, at);
        compare(doubles[d]->name, maxima, maxima2, sizeof *maxima, FLOATS, at);
        compare(doubles[d]->name, exponents, exponents2, sizeof *exponents, FLOATS, at);
    }
    /* A maximum from 256 on is subtracted, without rounding; the exponent is then only the bias. */
    const double shift = fabsf(max) < 256 ? 0 : max, scale = ldexp(1.0, (int)-exponent);
    for (int i = 0; i < FLOATS; i++) {
        const double exact = exp(x[i] - shift) * scale;
        note(FLOAT_EXP, fabs(e[i] - exact) / (power_of_two(exact) * 0x1p-23), x[i]);
        /* Of the number as a maximum, which is subtracted from itself from 256 on. */
        const double own = ldexp(fabsf(x[i]) < 256 ? exp(x[i]) : 1.0, (int)-exponents[i]);
        note(FLOAT_MAX, fabs(maxima[i] - own) / own, x[i]);
    }
}

/* Every step-th float from `from` to `to`, of one sign and |from| ≤ |to|: below 256, where nothing is
   subtracted, e is a function of x alone but for the exponent. */
static void check_range(float from, float to, uint32_t step, int worker, int workers) {
    const uint32_t first = bits_of(from), last = bits_of(to);
    const uint64_t turn = (uint64_t)FLOATS * step;
    for (uint64_t start = first + turn * (uint64_t)worker; start <= last;
         start += turn * (uint64_t)workers) {
        float x[FLOATS];
        for (int i = 0; i < FLOATS; i++) {
            const uint64_t bits = start + (uint64_t)i * step;
            x[i] = float_of(bits <= last ? (uint32_t)bits : last);
        }
        const float top = fmaxf(x[0], x[FLOATS - 1]);
        check_floats(x, fmaxf(top, nextafterf(-256, 0)));
    }
}

/* Below the range: exactly 0, never a subnormal; NaN stays; from 256 on, the maximum is subtracted. */
static void check_float_borders(uint32_t step, int worker, int workers) {
    uint64_t number = 0;
    for (uint32_t bits = 0; bits < 0x7f800000; bits += 4096 * step + 1) {
        for (int sign = 0; sign < 2; sign++) {
            if (number++ % (uint64_t)workers != (uint64_t)worker) continue;
            const float max = float_of(bits | (uint32_t)sign << 31);
            float x[FLOATS], e[FLOATS];
            for (int i = 0; i < FLOATS; i++) x[i] = (float)((double)max - i * (130.0 / FLOATS));
            x[0] = max;
            x[1] = (float)(max - 126.0);
            x[2] = nextafterf(x[1], -INFINITY);
            x[3] = -INFINITY;
            x[4] = -FLT_MAX;
            x[5] = NAN;
            for (int d = 0; d < count; d++) {
                floats[d]->exps(x, max, e);
                for (int i = 0; i < FLOATS; i++) {
                    const double below = (double)max - x[i];
                    const int isnan = x[i] != x[i];
                    /* A step of n is 0.693 wide. */
                    const int good = isnan           ? e[i] != e[i]
                                     : below <= 126  ? e[i] >= FLT_MIN
                                     : below > 126.7 ? bits_of(e[i]) == 0
                                                     : e[i] == 0 || e[i] >= FLT_MIN;
                    if (!good || (!isnan && !(e[i] < 0x1p61f)))
                        wrong("out of range", doubles[d]->name, x[i], max, e[i]);
                }
            }
            if (fabsf(max) >= 256) {
                float inside[FLOATS];
                for (int i = 0; i < FLOATS; i++) {
                    inside[i] = (float)((double)max - i * (126.0 / FLOATS));
                    if (!(inside[i] <= max)) inside[i] = max;
                    if ((double)max - inside[i] > 126) inside[i] = max;
                }
                check_floats(inside, max);
            }
        }
    }
}

/* -- doubles ------------------------------------------------------------------------------------ */

static uint64_t state;
static uint64_t random_bits(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static double uniform(double low, double high) {
    return low + (high - low) * ((double)(random_bits() >> 11) * 0x1p-53);
}
/* Of any exponent from 2^low to 2^high. */
static double spread(double low, double high) { return exp2(uniform(low, high)); }

static double ulp_error(double got, long double exact) {
    return (double)(fabsl(got - exact) / (power_of_two((double)exact) * 0x1p-52));
}

/* x − shift evenly spread, tiny, or near where n changes. */
static double any_distance(double range) {
    switch (random_bits() & 3) {
    case 0: return -spread(-60, log2(range));
    case 1: {
        const double n = floor(uniform(0, range / 0.0866));
        return -fmin(range, (n + 0.5) * 0x1.62e42fefa39efp-4 * (1 + uniform(-1e-9, 1e-9)));
    }
    default: return -uniform(0, range);
    }
}

static void check_double_exps(void) {
    double x[DOUBLES], e[DOUBLES], e2[DOUBLES];
    /* Nothing is subtracted below 2048. */
    double max = uniform(-2048, 2048);
    if ((random_bits() & 3) == 0) max = 0;
    if ((random_bits() & 3) == 0) max = (random_bits() & 1 ? 1 : -1) * spread(11, 20);
    for (int i = 0; i < DOUBLES; i++) x[i] = max + any_distance(748);
    for (int i = 0; i < DOUBLES; i++)
        if (x[i] < max - 748) x[i] = max;
    const double exponent = doubles[0]->exps(x, max, e);
    for (int d = 1; d < count; d++) {
        doubles[d]->exps(x, max, e2);
        compare(doubles[d]->name, e, e2, sizeof *e, DOUBLES, x);
    }
    const double shift = fabs(max) < 2048 ? 0 : max;
    for (int i = 0; i < DOUBLES; i++)
        note(DOUBLE_EXP, ulp_error(e[i], ldexpl(expl(x[i] - shift), (int)-exponent)), x[i]);

    const double outside[DOUBLES] = {max - 748.1, -INFINITY, -DBL_MAX, NAN};
    for (int d = 0; d < count; d++) {
        doubles[d]->exps(outside, max, e);
        for (int i = 0; i < 4; i++) {
            /* A step of the table is 0.087 wide. */
            const int good = i == 3 ? e[i] != e[i] : e[i] == 0;
            if (!good) wrong("out of range", doubles[d]->name, outside[i], max, e[i]);
        }
    }

    for (int i = 0; i < DOUBLES; i++) x[i] = any_distance(707);
    doubles[0]->bernoulli_exps(x, e);
    for (int d = 1; d < count; d++) {
        doubles[d]->bernoulli_exps(x, e2);
        compare(doubles[d]->name, e, e2, sizeof *e, DOUBLES, x);
    }
    for (int i = 0; i < DOUBLES; i++) note(BERNOULLI_EXP, ulp_error(e[i], expl(x[i])), x[i]);
}

static void check_reduced_exps(void) {
    double z[DOUBLES], hi[DOUBLES], lo[DOUBLES], n[DOUBLES], e[DOUBLES], e2[DOUBLES];
    for (int i = 0; i < DOUBLES; i++) z[i] = uniform(-4000, 4000);
    doubles[0]->reduced_exps(z, hi, lo, n);
    for (int d = 1; d < count; d++) {
        double hi2[DOUBLES], lo2[DOUBLES], n2[DOUBLES];
        doubles[d]->reduced_exps(z, hi2, lo2, n2);
        compare(doubles[d]->name, hi, hi2, sizeof *hi, DOUBLES, z);
        compare(doubles[d]->name, lo, lo2, sizeof *hi, DOUBLES, z);
        compare(doubles[d]->name, n, n2, sizeof *hi, DOUBLES, z);
    }
    for (int i = 0; i < DOUBLES; i++) {
        const long double exact = ldexpl(expl(z[i]), (int)-n[i]);
        note(REDUCED_EXP, (double)(fabsl((hi[i] - exact) + lo[i]) / exact), z[i]);
    }

    const double exponent = floor(uniform(-1500, 500));
    for (int i = 0; i < DOUBLES; i++) z[i] = uniform(-690, 690) - exponent * 0x1.62e42fefa39efp-1;
    for (int i = 0; i < 8; i++) z[i] = -spread(-30, 40);
    doubles[0]->exps_of(z, exponent, e);
    for (int d = 1; d < count; d++) {
        doubles[d]->exps_of(z, exponent, e2);
        compare(doubles[d]->name, e, e2, sizeof *e, DOUBLES, z);
    }
    for (int i = 0; i < DOUBLES; i++) {
        const long double exact = ldexpl(expl(z[i]), (int)exponent);
        if (e[i] == 0 && exact < 0x1.8p-1000L) continue;
        if (exact > 0x1p1000L) continue;
        note(EXP_OF, ulp_error(e[i], exact), z[i]);
    }
}

static void check_logarithms(void) {
    double q[DOUBLES], log[DOUBLES], low[DOUBLES], log2s[DOUBLES], low2[DOUBLES];
    for (int i = 0; i < DOUBLES; i++) {
        switch (random_bits() & 3) {
        case 0: q[i] = spread(-1000, 500); break;
        case 1: q[i] = spread(-4, 24); break;
        case 2: q[i] = 0x1.a827999fcef34p-2 * (1 + uniform(-1e-6, 1e-6)); break;
        default: q[i] = uniform(0, 3);
        }
    }
    for (int exact = 0; exact < 2; exact++) {
        doubles[0]->log1ps(q, exact, log, low);
        for (int d = 1; d < count; d++) {
            doubles[d]->log1ps(q, exact, log2s, low2);
            compare(doubles[d]->name, log, log2s, sizeof *q, DOUBLES, q);
            if (exact) compare(doubles[d]->name, low, low2, sizeof *q, DOUBLES, q);
        }
        for (int i = 0; i < DOUBLES; i++) {
            const long double right = log1pl(q[i]);
            if (exact) {
                note(LOG1P, ulp_error(log[i], right), q[i]);
            } else {
                note(LOG1P_SHORT, (double)(fabsl(log[i] - right) / right), q[i]);
            }
        }
    }
}

/* ----------------------------------------------------------------------------------------------- */

static void work(uint32_t step, int worker, int workers) {
    check_range(0.0f, nextafterf(256, 0), step, worker, workers);
    check_range(-0.0f, nextafterf(-382, 0), step, worker, workers);
    check_float_borders(step, worker, workers);
    state = 1000 + (uint64_t)worker;
    const long samples = (long)(1000000 / (step < 250 ? step : 250) / (uint32_t)workers);
    for (long i = 0; i < samples && LDBL_MANT_DIG > DBL_MANT_DIG; i++) {
        check_double_exps();
        check_reduced_exps();
        check_logarithms();
    }
}

/* The workers' findings put together; whether they are as stated. */
static int report(const findings *all, int workers) {
    static const char *names[] = {
        "float exp, ulp",       "float exp of maxima, relative", "double exp, ulp",
        "Bernoulli's exp, ulp", "double exp reduced, relative",  "exp_of, ulp",
        "log1p, ulp",           "log1p short, relative"};
    const vmath_f32 *f = floats[0];
    const vmath_f64 *d = doubles[0];
    const double bounds[] = {f->exp_ulp,     f->exp_max,    d->exp_ulp,   d->exp_ulp,
                             d->reduced_exp, d->exp_of_ulp, d->log1p_ulp, d->log1p_short};
    int good = 1;
    uint64_t differ = 0, out = 0;
    printf("%-29s %12s %11s %11s  %s\n", "", "numbers", "worst", "bound", "at");
    for (int k = 0; k < KINDS; k++) {
        uint64_t n = 0;
        double worst = 0, at = 0;
        for (int w = 0; w < workers; w++) {
            n += all[w].looked_at[k];
            if (all[w].worst[k] > worst) {
                worst = all[w].worst[k];
                at = all[w].at[k];
            }
        }
        const int within = worst <= bounds[k];
        const int seen = n > 0 || (k > FLOAT_MAX && LDBL_MANT_DIG == DBL_MANT_DIG);
        printf("%-29s %12llu %11.5g %11.5g  %.17g%s\n", names[k], (unsigned long long)n, worst,
               bounds[k], at,
               !seen    ? "  NOTHING SEEN"
               : within ? ""
                        : "  EXCEEDED");
        good &= within && seen;
    }
    for (int w = 0; w < workers; w++) {
        differ += all[w].differ;
        out += all[w].wrong;
    }
    printf("instruction sets:");
    for (int i = 0; i < count; i++) printf(" %s", doubles[i]->name);
    printf("; differing bits: %llu; out of range: %llu\n", (unsigned long long)differ,
           (unsigned long long)out);
    return good && differ == 0 && out == 0;
}

int main(int argc, char **argv) {
    const long step = argc > 1 ? atol(argv[1]) : 1, workers = argc > 2 ? atol(argv[2]) : 2;
    if (step < 1 || step > LARGEST_STEP || workers < 1 || workers > MOST_WORKERS) {
        fprintf(stderr, "usage: check_vmath [STEP [WORKERS]]\n");
        return 2;
    }
    for (int t = 0; t < TARGETS; t++) {
        if (!all_targets[t].f64->supported()) continue;
        floats[count] = all_targets[t].f32;
        doubles[count++] = all_targets[t].f64;
    }

    const size_t size = sizeof(findings) * (size_t)workers;
    findings *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return 2;
    for (int w = 0; w < workers; w++) {
        const pid_t child = fork();
        if (child < 0) return 2;
        if (child == 0) {
            mine = all + w;
            work((uint32_t)step, w, (int)workers);
            fflush(stdout);
            _exit(0);
        }
    }
    int finished = 1, status;
    for (int w = 0; w < workers; w++) finished &= wait(&status) > 0 && status == 0;
    if (!finished) printf("a worker did not finish\n");
    return report(all, (int)workers) && finished ? 0 : 1;
}
