/* indirect MILLIONS: calls through pointers, a jump table, and deep recursion. */
#include "check.h"

typedef uint64_t (*step)(uint64_t);
#define STEP(n) \
    __attribute__((noinline)) static uint64_t step##n(uint64_t x) { return x * (2 * n + 1) + n; }
STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
static step volatile table[8] = {step0, step1, step2, step3, step4, step5, step6, step7};

static uint64_t interpret(const unsigned char *code, size_t length, uint64_t x)
{
    for (size_t i = 0; i < length; i++)
        switch (code[i] & 15) {
        case 0: x += 1; break;
        case 1: x ^= x >> 7; break;
        case 2: x *= 5; break;
        case 3: x -= 77; break;
        case 4: x = x << 3 | x >> 61; break;
        case 5: x = ~x; break;
        case 6: x += x >> 9; break;
        case 7: x ^= 0x5555; break;
        case 8: x -= x << 5; break;
        case 9: x |= 1; break;
        case 10: x *= x | 3; break;
        case 11: x ^= x << 11; break;
        case 12: x += 12345; break;
        case 13: x = x >> 5 | x << 59; break;
        case 14: x &= ~8ull; break;
        default: x -= 1; break;
        }
    return x;
}

__attribute__((noinline)) static uint64_t recurse(unsigned depth, uint64_t x)
{
    if (!depth)
        return x;
    return recurse(depth - 1, x * 3 + depth) ^ depth;
}

int main(int argc, char **argv)
{
    uint64_t rounds = (argc == 2 ? strtoull(argv[1], NULL, 10) : 1) * 1000000, x = 1;
    for (uint64_t i = 0; i < rounds; i++)
        x = table[(i ^ x) & 7](x);
    static unsigned char code[4096];
    uint64_t state = 3;
    for (size_t i = 0; i < sizeof code; i++)
        code[i] = (unsigned char)next_random(&state);
    for (uint64_t i = 0; i < rounds / sizeof code; i++)
        x = interpret(code, sizeof code, x);
    for (uint64_t i = 0; i < rounds / 2000; i++)
        x ^= recurse(1000, x);
    printf("indirect %llu value %016llx\n", (unsigned long long)(rounds / 1000000),
           (unsigned long long)x);
    return 0;
}
