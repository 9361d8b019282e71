/* textops ROUNDS: string functions of the C library and SCAS, CMPS, LODS. */
#define _GNU_SOURCE
#include "check.h"
#include <string.h>

enum { BYTES = 1 << 18 };
static char text[BYTES + 1], other[BYTES + 1];

static size_t scas_length(const char *s)
{
    size_t count = (size_t)-1;
    __asm__ volatile("repne scasb" : "+D"(s), "+c"(count) : "a"(0) : "memory", "cc");
    return ~count - 1;
}
static size_t cmps_common(const char *x, const char *y, size_t bytes)
{
    size_t left = bytes;
    unsigned char equal;
    __asm__ volatile("cmp %%rcx,%%rcx; repe cmpsb; sete %3"
                     : "+S"(x), "+D"(y), "+c"(left), "=r"(equal)::"memory", "cc");
    return bytes - left - !equal;
}
static uint64_t lods_sum(const char *s, size_t words)
{
    uint64_t sum = 0, value;
    while (words--) {
        __asm__ volatile("lodsq" : "+S"(s), "=a"(value)::"memory");
        sum = sum * 3 + value;
    }
    return sum;
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 10;
    uint64_t state = 77, hash = FNV_START;
    for (size_t i = 0; i < BYTES; i++)
        text[i] = (char)('a' + next_random(&state) % 20);
    for (int round = 0; round < rounds; round++) {
        strcpy(other, text);
        other[BYTES - 1 - (size_t)round % 1000] = 'z';
        char needle[12] = {0};
        memcpy(needle, text + BYTES - 4000 + round % 100, 11);
        uint64_t facts[] = {
            strlen(text + round % 64),
            (uint64_t)(strchr(other, 'z') - other),
            (uint64_t)(strstr(text, needle) - text),
            (uint64_t)(memrchr(text, 'q', BYTES) ? (char *)memrchr(text, 'q', BYTES) - text : -1),
            (uint64_t)(strcmp(text, other) < 0),
            (uint64_t)strncasecmp(text, other, BYTES / 2),
            strspn(text, "abcdefghijklmnopqrst"),
            strcspn(other, "z"),
            scas_length(text + round % 32),
            cmps_common(text, other, BYTES),
            lods_sum(text, BYTES / 64),
            (uint64_t)(memmem(text, BYTES, needle, 11) == strstr(text, needle)),
        };
        hash = fnv(hash, facts, sizeof facts);
    }
    printf("textops %d hash %016llx\n", rounds, (unsigned long long)hash);
    return 0;
}
