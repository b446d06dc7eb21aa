/* A pool of threads that outlives calls but not processes.
 *
 * The pool is one structure that a forked child forgets (it makes its own when it first needs one):
 * its locks may be held by threads that do not exist in the child. The fork handler takes no lock
 * and frees nothing. It stands from the moment the library is loaded: a fork that has begun before
 * a handler is registered does not run it.
 *
 * A job is offered under the pool's lock as `job` with a number of seats. Workers take a seat, draw
 * pieces from an atomic counter until there are none, and leave. The caller draws pieces as well;
 * when they are gone it takes the offer back, so a worker that woke too late does nothing, and waits
 * only for those that have a seat.
 *
 * Waking a thread that sleeps takes some 5 to 60 µs, so a worker looks out for more work for a while
 * before it sleeps, and pyce_pool_ready says whether one would come at once. The kernel likes to put
 * a woken thread where its waker runs, where it would only take turns with it: sleeping workers are
 * barred from that processor. Otherwise a worker runs where its caller may.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "pool.h"

#include "fpenv.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

/* Turns of the loops that wait before they sleep: of a worker for work, of a caller for workers. */
enum { SPINS_FOR_WORK = 4000, SPINS_FOR_WORKERS = 400 };
/* Calls that follow each other more closely than this find workers awake, or are about to. */
#define CLOSE_TOGETHER 200000 /* ns */

typedef struct {
    const pyce_work *work;
    _Atomic int64_t next;
} job_state;

/* A worker; all under the pool's lock. */
typedef struct worker_state {
    struct worker_state *next;
    pthread_t thread;
    int number;
    int asleep;
#if defined(__linux__)
    int processor;     /* where it was last seen */
    int barred;        /* processor it may not use, or −1: where its caller ran last */
    cpu_set_t allowed; /* what it may use but for that: what its caller might */
#endif
} worker_state;

typedef struct {
    atomic_flag taken; /* by a caller */
    pthread_mutex_t lock;
    pthread_cond_t offered, finished;
    /* Under lock; what is atomic is read without it as well, as a hint. */
    job_state *job;
    int seats;              /* still free */
    _Atomic uint64_t offer; /* counts offers, so that a worker sits down once for each */
    _Atomic int sitting;
    _Atomic int looking;      /* workers that would take a seat at once */
    _Atomic int64_t last_end; /* of a job, in ns */
    worker_state *first;
    _Atomic int workers; /* that exist */
    int wanted;          /* workers with a number from here on end */
} pool_state;

static _Atomic(pool_state *) pool;
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

__attribute__((constructor)) static void start(void) {
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

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef struct {
    pool_state *pool;
    worker_state *me;
} worker_start;

static int has_work(const pool_state *p, uint64_t seen) {
    return p->job && p->seats > 0 && p->offer != seen;
}

#if defined(__linux__)
/* With the lock held: every worker may run where this thread may, the caller's, but none wakes, or
   stays, where it runs now. */
static void place(pool_state *p) {
    const int here = sched_getcpu();
    cpu_set_t allowed;
    if (here < 0 || pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) return;
    for (worker_state *w = p->first; w; w = w->next) {
        const int in_the_way = w->asleep || w->processor == here;
        if (CPU_EQUAL(&w->allowed, &allowed) && (!in_the_way || w->barred == here)) continue;
        w->allowed = allowed;
        w->barred = in_the_way ? here : -1;
        cpu_set_t told = allowed;
        if (in_the_way) CPU_CLR((size_t)here, &told);
        if (CPU_COUNT(&told) == 0) told = allowed;
        /* A refusal is no error: it then runs elsewhere. */
        pthread_setaffinity_np(w->thread, sizeof told, &told);
    }
}
#endif

static void *worker(void *argument) {
    worker_start given = *(worker_start *)argument;
    free(argument);
    pool_state *p = given.pool;
    worker_state *me = given.me;
    /* A thread begins with the environment of the one that made it. */
    (void)pyce_fpenv_enter();
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!has_work(p, seen) && me->number < p->wanted) {
            p->looking++;
#if defined(__linux__)
            me->processor = sched_getcpu();
#endif
            pthread_mutex_unlock(&p->lock);
            for (int i = 0; i < SPINS_FOR_WORK && p->offer == seen; i++) PAUSE();
            pthread_mutex_lock(&p->lock);
            p->looking--;
            if (has_work(p, seen) || me->number >= p->wanted) break;
            if (p->offer != seen) { /* what was offered and taken back is past */
                seen = p->offer;
                continue;
            }
            me->asleep = 1;
            pthread_cond_wait(&p->offered, &p->lock);
            me->asleep = 0;
        }
        if (me->number >= p->wanted) break;
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
    for (worker_state **at = &p->first; *at; at = &(*at)->next) {
        if (*at != me) continue;
        *at = me->next;
        break;
    }
    free(me);
    p->workers--;
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* With the lock held: have at least `wanted` workers, fewer where the system refuses. */
static void hire(pool_state *p, int wanted) {
    if (p->wanted < wanted) p->wanted = wanted;
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
        worker_state *made = calloc(1, sizeof *made);
        if (given && made) {
            given->pool = p;
            given->me = made;
            made->number = p->workers;
#if defined(__linux__)
            made->barred = made->processor = -1;
#endif
        }
        if (!given || !made || pthread_create(&made->thread, &attributes, worker, given)) {
            free(given);
            free(made);
            break;
        }
        made->next = p->first;
        p->first = made;
        p->workers++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void share(pool_state *p, job_state *job, int helpers, void *scratch) {
    pthread_mutex_lock(&p->lock);
    hire(p, helpers);
#if defined(__linux__)
    place(p);
#endif
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
        for (int i = 0; i < SPINS_FOR_WORKERS && p->sitting; i++) PAUSE();
        pthread_mutex_lock(&p->lock);
        while (p->sitting) pthread_cond_wait(&p->finished, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}

int pyce_pool_run(const pyce_work *work, int threads) {
    if (!have_key) return -1;
    void *scratch = scratch_of(work->scratch);
    if (!scratch) return -1;
    job_state job = {.work = work, .next = 0};
    const int64_t portions = (work->pieces + work->grain - 1) / work->grain;
    int64_t helpers = threads - 1;
    if (helpers > portions - 1) helpers = portions - 1;
    pool_state *p = helpers > 0 ? pool_of_process() : NULL;
    if (p && !atomic_flag_test_and_set(&p->taken)) {
        share(p, &job, (int)helpers, scratch);
        p->last_end = now_ns();
        atomic_flag_clear(&p->taken);
    } else {
        draw_pieces(&job, scratch);
    }
    return 0;
}

void pyce_pool_limit(int threads) {
    pool_state *p = atomic_load(&pool);
    if (!p || p->workers < threads) return;
    pthread_mutex_lock(&p->lock);
    if (p->wanted > threads - 1) {
        p->wanted = threads - 1;
        pthread_cond_broadcast(&p->offered);
    }
    pthread_mutex_unlock(&p->lock);
}

int pyce_pool_ready(void) {
    const pool_state *p = atomic_load(&pool);
    return p && (p->looking > 0 || now_ns() - p->last_end < CLOSE_TOGETHER);
}

void pyce_pool_note(void) {
    pool_state *p = pool_of_process();
    if (p) p->last_end = now_ns();
}
