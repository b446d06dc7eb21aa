/* A pool of threads that outlives calls but not processes.
 *
 * The pool is one structure. A forked child forgets it, because its locks may be held by threads that
 * do not exist in the child, and makes a new one when it first needs threads. The fork handler takes
 * no lock and frees nothing. It is registered when the library is loaded: a fork that has begun
 * before would not run it.
 *
 * A job is published under the pool's lock, with the number of workers that may join. A worker joins,
 * draws pieces from an atomic counter until none are left, and leaves. The caller draws pieces as
 * well. When none are left it withdraws the job, so that a worker that wakes late does nothing, and
 * waits only for the workers that have joined.
 *
 * Waking a sleeping thread takes 5 to 60 µs. Therefore a worker spins for a while before it sleeps, and
 * pyce_pool_is_warm says whether a worker would join at once. Linux tends to run a woken thread on
 * the processor of the thread that woke it, where the two would take turns; sleeping workers are
 * therefore excluded from that processor. Otherwise a worker may run wherever its caller may.
 */
#include "platform.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "fpenv.h"
#include "pool.h"

/* Iterations of the loops that wait before they sleep: a worker for a job, a caller for workers. */
enum { SPINS_FOR_JOB = 4000, SPINS_FOR_WORKERS = 400 };
/* Calls that follow each other within this time find workers awake or are worth waking them. */
#define WARM_NS 200000

/* A job and the first piece that was not drawn yet. */
typedef struct {
    const pyce_work *work;
    _Atomic int64_t next;
} pool_job;

/* A worker thread; every field but `pool` is protected by the pool's lock. */
typedef struct pool_worker {
    struct pool_worker *next;
    struct pool_state *pool;
    platform_thread thread;
    int number;
    int asleep;
    int processor;         /* that it was last seen on, or −1 */
    int excluded;          /* processor it may not use, or −1: the one its caller ran on last */
    platform_cpus allowed; /* what it may use apart from that: what its caller may */
} pool_worker;

typedef struct pool_state {
    atomic_flag in_use; /* by a caller */
    platform_lock lock;
    platform_condition published, finished;
    /* Protected by the lock; what is atomic is also read without it, as a hint. */
    pool_job *job;
    int open_places;              /* workers that may still join */
    _Atomic uint64_t publication; /* counts jobs, so that a worker joins each job once */
    _Atomic int joined;
    _Atomic int spinning;     /* workers that would join at once */
    _Atomic int64_t last_end; /* of a job, in ns */
    pool_worker *first;
    _Atomic int workers; /* that exist */
    int limit;           /* workers whose number is not below this end */
} pool_state;

static _Atomic(pool_state *) pool;
static platform_key scratch_key;
static int have_key;

/* -- scratch memory: one growing buffer for each thread -------------------------------------------- */

typedef struct {
    size_t size;
    void *memory;
} scratch_buffer;

static void free_scratch(void *buffer) {
    scratch_buffer *b = buffer;
    platform_free(b->memory);
    free(b);
}

/* The calling thread's buffer of at least `size` bytes, aligned to 64 bytes, or NULL. */
static void *scratch_memory(size_t size) {
    scratch_buffer *b = platform_get_value(scratch_key);
    if (!b) {
        b = calloc(1, sizeof *b);
        if (!b || platform_set_value(scratch_key, b)) {
            free(b);
            return NULL;
        }
    }
    if (b->size < size) {
        void *memory = platform_allocate(size);
        if (!memory) return NULL;
        platform_free(b->memory);
        b->memory = memory;
        b->size = size;
    }
    return b->memory;
}

/* -- the pool of a process ------------------------------------------------------------------------- */

static void forget_in_child(void) { atomic_store(&pool, NULL); }

__attribute__((constructor)) static void load(void) {
    have_key = platform_create_key(&scratch_key, free_scratch) == 0;
    platform_on_fork(forget_in_child);
}

static pool_state *pool_of_process(void) {
    pool_state *current = atomic_load(&pool);
    if (current) return current;
    pool_state *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    atomic_flag_clear(&made->in_use);
    platform_init_lock(&made->lock);
    platform_init_condition(&made->published);
    platform_init_condition(&made->finished);
    if (atomic_compare_exchange_strong(&pool, &current, made)) return made;
    free(made); /* another thread was first */
    return current;
}

static void draw_pieces(pool_job *job, void *scratch) {
    const pyce_work *work = job->work;
    for (;;) {
        const int64_t begin = atomic_fetch_add(&job->next, work->grain);
        if (begin >= work->pieces) return;
        const int64_t left = work->pieces - begin;
        work->work(work->context, begin, begin + (left < work->grain ? left : work->grain),
                   scratch);
    }
}

/* -- workers --------------------------------------------------------------------------------------- */

/* With the lock held: whether there is a job to join that is not the one counted by `seen`. */
static int can_join(const pool_state *p, uint64_t seen) {
    return p->job && p->open_places > 0 && p->publication != seen;
}

/* With the lock held: let every worker run where the calling thread may, but let none wake or stay
   on the processor where the calling thread runs now. */
static void place_workers(pool_state *p) {
    const int here = platform_processor();
    platform_cpus allowed;
    if (here < 0 || platform_get_affinity(&allowed)) return;
    for (pool_worker *w = p->first; w; w = w->next) {
        const int conflicts = w->asleep || w->processor == here;
        if (platform_same_cpus(&w->allowed, &allowed) && (!conflicts || w->excluded == here)) {
            continue;
        }
        w->allowed = allowed;
        w->excluded = conflicts ? here : -1;
        platform_set_affinity(w->thread, &allowed, w->excluded);
    }
}

/* With the lock held, released while it waits: wait until there is a job to join or the worker shall
   end. Returns whether there is a job. */
static int wait_for_job(pool_state *p, pool_worker *self, uint64_t *seen) {
    while (!can_join(p, *seen) && self->number < p->limit) {
        p->spinning++;
        self->processor = platform_processor();
        platform_release(&p->lock);
        for (int i = 0; i < SPINS_FOR_JOB && p->publication == *seen; i++) platform_pause();
        platform_acquire(&p->lock);
        p->spinning--;
        if (can_join(p, *seen) || self->number >= p->limit) break;
        if (p->publication != *seen) { /* published and withdrawn meanwhile */
            *seen = p->publication;
            continue;
        }
        self->asleep = 1;
        platform_wait(&p->published, &p->lock);
        self->asleep = 0;
    }
    return self->number < p->limit;
}

/* With the lock held. */
static void remove_worker(pool_state *p, pool_worker *worker) {
    pool_worker **link = &p->first;
    while (*link != worker) link = &(*link)->next;
    *link = worker->next;
    free(worker);
    p->workers--;
}

static platform_thread_result run_worker(void *argument) {
    pool_worker *self = argument;
    pool_state *p = self->pool;
    /* A thread inherits the floating-point environment of its creator. */
    (void)pyce_fpenv_enter();
    uint64_t seen = 0;
    platform_acquire(&p->lock);
    while (wait_for_job(p, self, &seen)) {
        seen = p->publication;
        p->open_places--;
        p->joined++;
        pool_job *job = p->job;
        platform_release(&p->lock);
        void *scratch = scratch_memory(job->work->scratch);
        if (scratch) draw_pieces(job, scratch); /* without memory the others do the work */
        platform_acquire(&p->lock);
        if (--p->joined == 0) platform_wake_one(&p->finished);
    }
    remove_worker(p, self);
    platform_release(&p->lock);
    return 0;
}

/* With the lock held: create one worker. Returns whether the system permitted it. */
static int create_worker(pool_state *p) {
    pool_worker *made = calloc(1, sizeof *made);
    if (!made) return 0;
    made->pool = p;
    made->number = p->workers;
    made->excluded = made->processor = -1;
    if (platform_start_thread(&made->thread, run_worker, made)) {
        free(made);
        return 0;
    }
    made->next = p->first;
    p->first = made;
    p->workers++;
    return 1;
}

/* With the lock held: have at least `count` workers, fewer if the system refuses. */
static void ensure_workers(pool_state *p, int count) {
    if (p->limit < count) p->limit = count;
    while (p->workers < count && create_worker(p)) {
    }
}

/* -- callers --------------------------------------------------------------------------------------- */

static void share(pool_state *p, pool_job *job, int helpers, void *scratch) {
    platform_acquire(&p->lock);
    ensure_workers(p, helpers);
    place_workers(p);
    p->job = job;
    p->open_places = helpers;
    p->publication++;
    platform_wake_all(&p->published);
    platform_release(&p->lock);
    draw_pieces(job, scratch);
    platform_acquire(&p->lock);
    p->job = NULL;
    p->open_places = 0;
    if (p->joined) {
        platform_release(&p->lock);
        for (int i = 0; i < SPINS_FOR_WORKERS && p->joined; i++) platform_pause();
        platform_acquire(&p->lock);
        while (p->joined) platform_wait(&p->finished, &p->lock);
    }
    platform_release(&p->lock);
}

int pyce_pool_reserve(size_t scratch) { return have_key && scratch_memory(scratch) ? 0 : -1; }

int pyce_pool_run(const pyce_work *work, int threads) {
    if (!have_key) return -1;
    void *scratch = scratch_memory(work->scratch);
    if (!scratch) return -1;
    pool_job job = {.work = work, .next = 0};
    const int64_t draws = (work->pieces + work->grain - 1) / work->grain;
    int64_t helpers = threads - 1;
    if (helpers > draws - 1) helpers = draws - 1;
    pool_state *p = helpers > 0 ? pool_of_process() : NULL;
    if (p && !atomic_flag_test_and_set(&p->in_use)) {
        share(p, &job, (int)helpers, scratch);
        p->last_end = platform_now_ns();
        atomic_flag_clear(&p->in_use);
    } else {
        draw_pieces(&job, scratch);
    }
    return 0;
}

void pyce_pool_limit(int threads) {
    pool_state *p = atomic_load(&pool);
    if (!p || p->workers < threads) return;
    platform_acquire(&p->lock);
    if (p->limit > threads - 1) {
        p->limit = threads - 1;
        platform_wake_all(&p->published);
    }
    platform_release(&p->lock);
}

int pyce_pool_is_warm(void) {
    const pool_state *p = atomic_load(&pool);
    return p && (p->spinning > 0 || platform_now_ns() - p->last_end < WARM_NS);
}

void pyce_pool_note_call(void) {
    pool_state *p = pool_of_process();
    if (p) p->last_end = platform_now_ns();
}
