/* integers ROUNDS: sorting, pointer chasing, byte hashing, division, bit operations, system calls. */
#include "check.h"
#include <unistd.h>
#include <sys/syscall.h>

enum { COUNT = 200000 };
static uint32_t values[COUNT], links[1 << 16];

static int compare(const void *x, const void *y)
{
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    return (a > b) - (a < b);
}

static uint64_t arithmetic(uint64_t x)
{
    uint64_t sum = 0;
    for (uint64_t i = 1; i < 200000; i++) {
        unsigned __int128 wide = (unsigned __int128)x * (i | 0x8000000000000001ull);
        x = (uint64_t)(wide >> 64) ^ (uint64_t)wide;
        sum += x / i + x % (i * 3) + (uint64_t)__builtin_popcountll(x);
        sum ^= (uint64_t)__builtin_ctzll(x | 1ull << 63) << (x & 31);
        sum += (uint64_t)((int64_t)x >> (i & 63)) + (sum >> 3 | sum << 61);
    }
    return sum;
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 1;
    uint64_t state = 9, hash = FNV_START;
    for (int round = 0; round < rounds; round++) {
        for (size_t i = 0; i < COUNT; i++)
            values[i] = (uint32_t)next_random(&state);
        qsort(values, COUNT, sizeof *values, compare);
        hash = fnv(hash, values, sizeof values);
        enum { LINKS = sizeof links / sizeof *links };
        for (uint32_t i = 0; i < LINKS; i++)
            links[i] = (i * 40503u + 12345u) % LINKS;
        uint32_t at = 0;
        for (int i = 0; i < 2000000; i++)
            at = links[at] ^ (uint32_t)(i & 1);
        uint64_t parts[] = {at, arithmetic(state)};
        hash = fnv(hash, parts, sizeof parts);
        long parent = getppid();
        for (int i = 0; i < 20000; i++)
            hash += syscall(SYS_getppid) != parent;
    }
    printf("integers %d hash %016llx\n", rounds, (unsigned long long)hash);
    return 0;
}
