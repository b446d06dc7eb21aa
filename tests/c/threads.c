/* Many callers of one pool that is resized meanwhile, and forks from among them.
 *
 * `threads [SECONDS]`; make sanitize-threads runs it under ThreadSanitizer, which can't follow threads
 * into a fork, and without it. Ends with 0 when every result has the same bytes, with 1 when one does
 * not.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"
#include "pyce.h"
#include "pyce_bench.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

enum { CALLERS = 6, SHAPES = 4, MOST = 40000 };

static const struct {
    int64_t rows, classes;
} shape[SHAPES] = {{200, 100}, {4000, 10}, {1, MOST}, {3, 9000}};

static float logits[MOST], expected[SHAPES][MOST];
static int64_t labels[4000];
static double expected_total;
static _Atomic int wrong, stop;

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

static void *caller(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    float *grad = malloc(sizeof *grad * MOST);
    while (grad && !stop) {
        seed = seed * 1103515245u + 12345u;
        if (!right((int)(seed >> 16) % SHAPES, 1 + (int)(seed >> 20) % 5, grad)) wrong = 1;
    }
    free(grad);
    return NULL;
}

static void *resizer(void *argument) {
    unsigned seed = 1;
    (void)argument;
    while (!stop) {
        seed = seed * 1103515245u + 12345u;
        pyce_pool_limit(1 + (int)(seed >> 16) % 5);
        const struct timespec pause = {.tv_nsec = 200000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

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
    pthread_t threads[CALLERS + 1];
    for (int i = 0; i < CALLERS; i++) {
        pthread_create(threads + i, NULL, caller, (void *)(uintptr_t)(i + 1));
    }
    pthread_create(threads + CALLERS, NULL, resizer, NULL);
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    int forks = 0;
    do {
#if defined(__SANITIZE_THREAD__)
        sleep(1);
#else
        const pid_t child = fork();
        if (child == 0) {
            alarm(30);
            static float grad[MOST];
            int fine = 1;
            for (int i = 0; i < SHAPES; i++) fine &= right(i, 3, grad);
            _exit(!fine);
        }
        int status = 1;
        if (child < 0 || waitpid(child, &status, 0) < 0 || status) wrong = 1;
        forks++;
#endif
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - begin.tv_sec) < seconds && !wrong);
    stop = 1;
    for (int i = 0; i <= CALLERS; i++) pthread_join(threads[i], NULL);
    printf("%d forks, %s\n", forks, wrong ? "WRONG" : "all right");
    return wrong;
}
