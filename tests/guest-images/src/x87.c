/* x87 ROUNDS: long double arithmetic, transcendental instructions, the environment, BCD, MMX. */
#include "check.h"
#include <mmintrin.h>
#include <string.h>

static uint64_t hash_value(uint64_t hash, long double value)
{
    return fnv(hash, &value, 10);
}

static uint64_t transcendental(uint64_t hash, long double x)
{
    long double r, s;
    __asm__("fsin" : "=t"(r) : "0"(x));
    hash = hash_value(hash, r);
    __asm__("fcos" : "=t"(r) : "0"(x));
    hash = hash_value(hash, r);
    __asm__("fsincos" : "=t"(r), "=u"(s) : "0"(x));
    hash = hash_value(hash_value(hash, r), s);
    __asm__("fptan" : "=t"(r), "=u"(s) : "0"(x));
    hash = hash_value(hash, s);
    __asm__("fpatan" : "=t"(r) : "0"(x), "u"(1.25L) : "st(1)");
    hash = hash_value(hash, r);
    __asm__("fyl2x" : "=t"(r) : "0"(x < 0 ? -x : x), "u"(2.5L) : "st(1)");
    hash = hash_value(hash, r);
    __asm__("f2xm1" : "=t"(r) : "0"(x / 16));
    hash = hash_value(hash, r);
    __asm__("fprem1" : "=t"(r) : "0"(x * 1e5L), "u"(3.14L));
    hash = hash_value(hash, r);
    __asm__("fsqrt" : "=t"(r) : "0"(x < 0 ? -x : x));
    hash = hash_value(hash, r);
    __asm__("fscale" : "=t"(r) : "0"(x), "u"(5.0L));
    return hash_value(hash, r);
}

static uint64_t conversions(uint64_t hash, long double x)
{
    unsigned char bcd[10];
    int64_t whole;
    int32_t narrow;
    float single;
    __asm__ volatile("fbstp %0" : "=m"(bcd) : "t"(x * 1e6L) : "st");
    __asm__ volatile("fistpll %0" : "=m"(whole) : "t"(x * 1e3L) : "st");
    __asm__ volatile("fisttpl %0" : "=m"(narrow) : "t"(x) : "st");
    single = (float)x;
    hash = fnv(hash, bcd, sizeof bcd);
    hash = fnv(hash, &whole, 8);
    hash = fnv(hash, &narrow, 4);
    return fnv(hash, &single, 4);
}

/* Control, status and tag words; the rounding and precision controls change results. */
static uint64_t environment(uint64_t hash, long double x)
{
    static const unsigned short CONTROLS[] = {0x37f, 0x77f, 0xb7f, 0xf7f, 0x27f, 0x07f};
    unsigned short saved, status;
    __asm__ volatile("fnstcw %0" : "=m"(saved));
    for (size_t i = 0; i < sizeof CONTROLS / 2; i++) {
        __asm__ volatile("fldcw %0" ::"m"(CONTROLS[i]));
        long double r = x;
        __asm__ volatile("fld1; fdivp; frndint" : "+t"(r));
        long double third = x;
        __asm__ volatile("fdiv %%st,%%st(0); fadd %1" : "+t"(third) : "f"(x));
        __asm__ volatile("fnstsw %0" : "=a"(status));
        hash = hash_value(hash_value(hash, r), third);
        hash = fnv(hash, &status, 2);
    }
    __asm__ volatile("fnclex; fldcw %0" ::"m"(saved));
    struct { unsigned control, status, tag, rest[4]; } env;
    __asm__ volatile("fnstenv %0; fldcw %1" : "=m"(env) : "m"(saved));
    unsigned short words[] = {(unsigned short)env.control, (unsigned short)env.status,
                              (unsigned short)env.tag};
    return fnv(hash, words, sizeof words);
}

static uint64_t mmx(uint64_t hash, uint64_t seed)
{
    __m64 v = _mm_cvtsi64_m64((long long)seed), sum = _mm_setzero_si64();
    for (int i = 0; i < 16; i++) {
        sum = _mm_adds_pi16(sum, _mm_mulhi_pi16(v, _mm_set1_pi16(1234)));
        v = _mm_xor_si64(_mm_slli_si64(v, 3), _mm_packs_pi16(sum, v));
    }
    uint64_t result = (uint64_t)_mm_cvtm64_si64(_mm_xor_si64(v, sum));
    _mm_empty();
    return fnv(hash, &result, 8);
}

static long double bodies(int steps)
{
    long double p[4] = {0, 1.1L, -2.3L, 4.7L}, v[4] = {0.1L, 0, -0.2L, 0.05L};
    while (steps--)
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++) {
                long double d = p[j] - p[i];
                v[i] += d / (1 + d * d) * 0.001L;
            }
            p[i] += v[i] * 0.01L;
        }
    return p[0] * p[1] + p[2] * p[3];
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 100;
    uint64_t hash = FNV_START, state = 11;
    for (int i = 0; i < rounds; i++) {
        long double x = (long double)(int64_t)(next_random(&state) % 2000001) / 1000000 - 1;
        hash = transcendental(hash, x * 3);
        hash = conversions(hash, x);
        hash = environment(hash, x);
        hash = mmx(hash, next_random(&state));
    }
    hash = hash_value(hash, bodies(rounds * 20));
    printf("x87 %d hash %016llx\n", rounds, (unsigned long long)hash);
    return 0;
}
