/* A pool of threads that outlives calls but not processes.
 *
 * The pool is one structure that a forked child forgets (it makes its own when it first needs one):
 * its locks may be held by threads that do not exist in the child. The fork handler takes no lock
 * and frees nothing.
 *
 * A job is offered under the pool's lock as `job` with a number of seats. Workers take a seat, draw
 * pieces from an atomic counter until there are none, and leave. The caller draws pieces as well;
 * when they are gone it takes the offer back, so a worker that woke too late does nothing, and waits
 * only for those that have a seat.
 */
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

/* Turns of the loops that wait before they sleep: some microseconds. */
enum { SPINS = 2000 };

typedef struct {
    const pyce_work *work;
    _Atomic int64_t next;
} job_state;

typedef struct {
    atomic_flag taken; /* by a caller */
    pthread_mutex_t lock;
    pthread_cond_t offered, finished;
    /* Under lock, but read without it as a hint by those who wait: */
    job_state *job;
    _Atomic uint64_t offer; /* counts offers, so that a worker sits down once for each */
    _Atomic int seats;      /* still free */
    _Atomic int sitting;
    int workers; /* that exist */
    int wanted;  /* workers with a number from here on end */
} pool_state;

static _Atomic(pool_state *) pool;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t scratch_key;
static int have_key;

/* -- scratch: one growing buffer for each thread ------------------------------------------------ */

typedef struct {
    size_t size;
    char *memory;
} scratch_buffer;

static void free_scratch(void *buffer) {
    scratch_buffer *b = buffer;
    free(b->memory);
    free(b);
}

/* At least `size` bytes, 64-byte aligned, or NULL. */
static void *scratch_of(size_t size) {
    scratch_buffer *b = pthread_getspecific(scratch_key);
    if (!b) {
        b = calloc(1, sizeof *b);
        if (!b || pthread_setspecific(scratch_key, b)) {
            free(b);
            return NULL;
        }
    }
    if (b->size < size) {
        void *memory = NULL;
        if (posix_memalign(&memory, 64, size)) return NULL;
        free(b->memory);
        b->memory = memory;
        b->size = size;
    }
    return b->memory;
}

/* -- life ----------------------------------------------------------------------------------------- */

static void forget_in_child(void) { atomic_store(&pool, NULL); }

static void start(void) {
    have_key = pthread_key_create(&scratch_key, free_scratch) == 0;
    pthread_atfork(NULL, NULL, forget_in_child);
}

static pool_state *pool_of_process(void) {
    pool_state *mine = atomic_load(&pool);
    if (mine) return mine;
    pool_state *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    atomic_flag_clear(&made->taken);
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->offered, NULL);
    pthread_cond_init(&made->finished, NULL);
    if (atomic_compare_exchange_strong(&pool, &mine, made)) return made;
    free(made); /* another thread was first */
    return mine;
}

static void draw_pieces(job_state *job, void *scratch) {
    const pyce_work *work = job->work;
    for (;;) {
        const int64_t begin = atomic_fetch_add(&job->next, work->grain);
        if (begin >= work->pieces) return;
        const int64_t left = work->pieces - begin;
        work->work(work->context, begin, begin + (left < work->grain ? left : work->grain),
                   scratch);
    }
}

typedef struct {
    pool_state *pool;
    int number;
} worker_start;

static void *worker(void *argument) {
    worker_start given = *(worker_start *)argument;
    free(argument);
    pool_state *p = given.pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!(p->job && p->seats > 0 && p->offer != seen) && given.number < p->wanted) {
            pthread_mutex_unlock(&p->lock);
            for (int i = 0; i < SPINS && p->offer == seen; i++) PAUSE();
            pthread_mutex_lock(&p->lock);
            if ((p->job && p->seats > 0 && p->offer != seen) || given.number >= p->wanted) break;
            seen = p->job ? seen : p->offer; /* what was offered and taken back is past */
            pthread_cond_wait(&p->offered, &p->lock);
        }
        if (given.number >= p->wanted) break;
        seen = p->offer;
        p->seats--;
        p->sitting++;
        job_state *job = p->job;
        pthread_mutex_unlock(&p->lock);
        void *scratch = scratch_of(job->work->scratch);
        if (scratch) draw_pieces(job, scratch); /* without memory, the others do it all */
        pthread_mutex_lock(&p->lock);
        if (--p->sitting == 0) pthread_cond_signal(&p->finished);
    }
    p->workers--;
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* With the lock held: have at least `wanted` workers, fewer where the system refuses, and no more
   than `limit`. */
static void hire(pool_state *p, int wanted, int limit) {
    if (p->wanted < wanted) p->wanted = wanted;
    if (p->wanted > limit) p->wanted = limit;
    if (p->workers > p->wanted) pthread_cond_broadcast(&p->offered);
    if (p->workers >= wanted) return;
    /* Signals are for the threads of the application. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (p->workers < wanted) {
        worker_start *given = malloc(sizeof *given);
        pthread_t thread;
        if (!given) break;
        given->pool = p;
        given->number = p->workers;
        if (pthread_create(&thread, &attributes, worker, given)) {
            free(given);
            break;
        }
        p->workers++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void share(pool_state *p, job_state *job, int helpers, int limit, void *scratch) {
    pthread_mutex_lock(&p->lock);
    hire(p, helpers, limit);
    p->job = job;
    p->seats = helpers;
    p->offer++;
    pthread_cond_broadcast(&p->offered);
    pthread_mutex_unlock(&p->lock);
    draw_pieces(job, scratch);
    pthread_mutex_lock(&p->lock);
    p->job = NULL;
    p->seats = 0;
    if (p->sitting) {
        pthread_mutex_unlock(&p->lock);
        for (int i = 0; i < SPINS && p->sitting; i++) PAUSE();
        pthread_mutex_lock(&p->lock);
        while (p->sitting) pthread_cond_wait(&p->finished, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}

int pyce_pool_run(const pyce_work *work, int threads) {
    pthread_once(&once, start);
    if (!have_key) return -1;
    void *scratch = scratch_of(work->scratch);
    if (!scratch) return -1;
    job_state job = {.work = work, .next = 0};
    const int64_t portions = (work->pieces + work->grain - 1) / work->grain;
    int64_t helpers = threads - 1;
    if (helpers > portions - 1) helpers = portions - 1;
    pool_state *p = helpers > 0 ? pool_of_process() : NULL;
    if (p && !atomic_flag_test_and_set(&p->taken)) {
        share(p, &job, (int)helpers, threads - 1, scratch);
        atomic_flag_clear(&p->taken);
    } else {
        draw_pieces(&job, scratch);
    }
    return 0;
}
