/* copies ROUNDS: memcpy, memmove and memset of the C library and by REP instructions. */
#include "check.h"
#include <string.h>

enum { BYTES = 1 << 20 };
static char a[BYTES + 64], b[BYTES + 64];

static void rep_movsb(void *to, const void *from, size_t bytes)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
}
static void rep_movsq(void *to, const void *from, size_t words)
{
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words)::"memory");
}
static void rep_stosq(void *to, uint64_t value, size_t words)
{
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(value) : "memory");
}
static void movsb_down(char *to, const char *from, size_t bytes)
{
    to += bytes - 1;
    from += bytes - 1;
    __asm__ volatile("std; rep movsb; cld" : "+D"(to), "+S"(from), "+c"(bytes)::"memory", "cc");
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 10;
    uint64_t state = 42, hash = FNV_START;
    for (size_t i = 0; i < BYTES; i += 8) {
        uint64_t r = next_random(&state);
        memcpy(a + i, &r, 8);
    }
    for (int round = 0; round < rounds; round++) {
        memcpy(b, a, BYTES);
        memcpy(b + 3, a + 1, BYTES - 8);
        memmove(b + 17, b, BYTES - 32);
        memmove(b, b + 9, BYTES - 32);
        for (size_t bytes = 1; bytes < 512; bytes += 3)
            memcpy(b + bytes * 700, a + bytes * 511, bytes);
        memset(b + BYTES / 2, round, 30000);
        rep_movsb(a + 5000, b + 1, 70001);
        rep_movsq(a + 90001, b + 4096, 20000);
        rep_stosq(a + 300003, next_random(&state), 9000);
        rep_movsb(a + 400001, a + 400000, 3000);
        movsb_down(a + 500003, a + 500000, 5000);
        hash = fnv(hash, b + (round * 4099) % (BYTES / 2), 4096);
    }
    hash = fnv(hash, a, BYTES);
    hash = fnv(hash, b, BYTES);
    printf("copies %d hash %016llx\n", rounds, (unsigned long long)hash);
    return 0;
}
