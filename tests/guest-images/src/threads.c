/* threads ROUNDS: mutexes, condition variables, atomics and thread-local data. */
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 4 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static int turn, rounds;
static uint64_t shared, order = FNV_START;
static atomic_ullong counter;
static __thread uint64_t mine;

static void *worker(void *arg)
{
    int me = (int)(intptr_t)arg;
    uint64_t state = (uint64_t)me + 1;
    for (int i = 0; i < rounds; i++) {
        pthread_mutex_lock(&lock);
        while (turn != me)
            pthread_cond_wait(&turn_changed, &lock);
        order = fnv(order, &me, sizeof me);
        turn = (turn + 1) % THREADS;
        pthread_cond_broadcast(&turn_changed);
        pthread_mutex_unlock(&lock);
    }
    for (int i = 0; i < rounds * 50; i++) {
        mine += next_random(&state) & 0xff;
        atomic_fetch_add(&counter, 1);
        pthread_mutex_lock(&lock);
        shared += (uint64_t)me;
        pthread_mutex_unlock(&lock);
    }
    return (void *)(uintptr_t)mine;
}

int main(int argc, char **argv)
{
    rounds = argc == 2 ? atoi(argv[1]) : 100;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, worker, (void *)(intptr_t)i))
            die("pthread_create");
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        sum += (uintptr_t)result;
    }
    printf("threads %d order %016llx shared %llu counter %llu local %llu\n", rounds,
           (unsigned long long)order, (unsigned long long)shared,
           (unsigned long long)atomic_load(&counter), (unsigned long long)sum);
    return 0;
}
