/* Several threads call the library while another one resizes its pool and the process forks. Without
 * forks, threads begin and end meanwhile: on Windows, and under ThreadSanitizer.
 *
 *     threads [SECONDS]
 *
 * The exit status is 0 if every result has the same bytes, else 1. `make sanitize-threads` runs the
 * program under ThreadSanitizer, which does not support threads in a forked child, and without it.
 */
#include "platform.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <sys/wait.h>
#endif

#include "pool.h"
#include "pyce.h"
#include "pyce_bench.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

#if defined(_WIN32) || defined(__SANITIZE_THREAD__)
#define FORKS 0
#else
#define FORKS 1
#endif

enum { CALLERS = 6, SHAPES = 4, MOST = 40000 };

static const struct {
    int64_t rows, classes;
} shape[SHAPES] = {{200, 100}, {4000, 10}, {1, MOST}, {3, 9000}};

static float logits[MOST], expected[SHAPES][MOST];
static int64_t labels[4000];
static double expected_total;
static _Atomic int wrong, stop, running;

static int run(int which, int threads, float *grad) {
    float loss;
    return pyce_cross_entropy(PYCE_FORWARD_BACKWARD, PYCE_FLOAT32, PYCE_MEAN, threads,
                              shape[which].rows, shape[which].classes, 1, logits, labels, NULL,
                              grad, 0.1, -100, &loss);
}

static int right(int which, int threads, float *grad) {
    const size_t size = (size_t)(shape[which].rows * shape[which].classes) * sizeof *grad;
    memset(grad, 0xff, size);
    if (run(which, threads, grad) || memcmp(grad, expected[which], size)) return 0;
    double total;
    return !pyce_binary_cross_entropy(PYCE_FLOAT32, MOST, logits, logits, NULL, NULL, NULL, NULL,
                                      1.0, threads, &total) &&
           total == expected_total;
}

static void rest(void) {
#if defined(_WIN32)
    Sleep(1);
#else
    const struct timespec pause = {.tv_nsec = 200000};
    nanosleep(&pause, NULL);
#endif
}

static platform_thread_result caller(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    float *grad = malloc(sizeof *grad * MOST);
    while (grad && !stop) {
        seed = seed * 1103515245u + 12345u;
        if (!right((int)(seed >> 16) % SHAPES, 1 + (int)(seed >> 20) % 5, grad)) wrong = 1;
    }
    free(grad);
    running--;
    return 0;
}

static platform_thread_result resizer(void *argument) {
    unsigned seed = 1;
    (void)argument;
    while (!stop) {
        seed = seed * 1103515245u + 12345u;
        pyce_pool_limit(1 + (int)(seed >> 16) % 5);
        rest();
    }
    running--;
    return 0;
}

static void start(platform_thread_result (*run)(void *), int argument) {
    platform_thread thread;
    running++;
    if (platform_start_thread(&thread, run, (void *)(uintptr_t)argument)) {
        running--;
        wrong = 1;
    }
}

static int all_right(void) {
    static float grad[MOST];
    int fine = 1;
    for (int i = 0; i < SHAPES; i++) fine &= right(i, 3, grad);
    return fine;
}

#if FORKS
static void come_and_go(void) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(30);
        _exit(!all_right());
    }
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) < 0 || status) {
        fprintf(stderr, "child %d: %s, status %d\n", (int)child, strerror(errno), status);
        wrong = 1;
    }
}
#else
static _Atomic int gone;

static platform_thread_result visitor(void *argument) {
    (void)argument;
    if (!all_right()) wrong = 1;
    gone = 1;
    running--;
    return 0;
}

static void come_and_go(void) {
    gone = 0;
    start(visitor, 0);
    while (!gone && !wrong) rest();
}
#endif

int main(int count, char **words) {
    const double seconds = count > 1 ? atof(words[1]) : 10;
    for (int i = 0; i < MOST; i++) logits[i] = (float)(i * 7919 % 1000) / 1000;
    pyce_set_thread_thresholds(1 << 10, 1 << 10);
    for (int i = 0; i < SHAPES; i++) {
        if (run(i, 1, expected[i])) return 1;
    }
    if (pyce_binary_cross_entropy(PYCE_FLOAT32, MOST, logits, logits, NULL, NULL, NULL, NULL, 1.0,
                                  1, &expected_total)) {
        return 1;
    }
    for (int i = 1; i <= CALLERS; i++) start(caller, i);
    start(resizer, 0);
    const int64_t begin = platform_now_ns();
    int rounds = 0;
    do {
        come_and_go();
        rounds++;
    } while ((double)(platform_now_ns() - begin) < seconds * 1e9 && !wrong);
    stop = 1;
    while (running) rest();
    printf("%d %s, %s\n", rounds, FORKS ? "forks" : "threads began and ended",
           wrong ? "WRONG" : "all right");
    return wrong;
}
