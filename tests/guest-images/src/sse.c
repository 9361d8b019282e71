/* sse ROUNDS: single, double and integer vector kernels up to SSE4.2. */
#include "check.h"
#include <nmmintrin.h>
#include <string.h>

enum { N = 64 };
static float fa[N][N], fb[N][N], fc[N][N];
static double da[N][N], db[N][N], dc[N][N];
static unsigned char bytes[65536];

static void matrices(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 4) {
            __m128 f = _mm_setzero_ps();
            __m128d d0 = _mm_setzero_pd(), d1 = _mm_setzero_pd();
            for (int k = 0; k < N; k++) {
                f = _mm_add_ps(f, _mm_mul_ps(_mm_set1_ps(fa[i][k]), _mm_loadu_ps(&fb[k][j])));
                __m128d s = _mm_set1_pd(da[i][k]);
                d0 = _mm_add_pd(d0, _mm_mul_pd(s, _mm_loadu_pd(&db[k][j])));
                d1 = _mm_add_pd(d1, _mm_mul_pd(s, _mm_loadu_pd(&db[k][j + 2])));
            }
            _mm_storeu_ps(&fc[i][j], f);
            _mm_storeu_pd(&dc[i][j], d0);
            _mm_storeu_pd(&dc[i][j + 2], d1);
        }
}

static uint64_t floats(void)
{
    uint64_t hash = FNV_START;
    __m128 x = _mm_set_ps(1.5f, -2.25f, 3e-3f, 7e8f);
    __m128d y = _mm_set_pd(1.000001, -9e-30);
    for (int i = 0; i < 2000; i++) {
        x = _mm_sub_ps(_mm_mul_ps(x, _mm_set1_ps(0.99f)), _mm_sqrt_ps(_mm_and_ps(x, _mm_castsi128_ps(_mm_set1_epi32(0x7fffffff)))));
        y = _mm_div_pd(_mm_add_pd(y, _mm_set1_pd(1.1)), _mm_max_pd(y, _mm_set1_pd(0.7)));
        __m128 estimates = _mm_add_ps(_mm_rcp_ps(x), _mm_rsqrt_ps(_mm_and_ps(x, _mm_castsi128_ps(_mm_set1_epi32(0x7fffffff)))));
        __m128i whole = _mm_cvtps_epi32(x);
        __m128 single = _mm_cvtpd_ps(y);
        hash = fnv(hash, &estimates, 16);
        hash = fnv(hash, &whole, 16);
        hash = fnv(hash, &single, 16);
    }
    unsigned mxcsr = _mm_getcsr();
    hash = fnv(hash, &mxcsr, 4);
    hash = fnv(hash, &x, 16);
    return fnv(hash, &y, 16);
}

__attribute__((target("sse4.2"))) static uint64_t integers(void)
{
    __m128i sum = _mm_setzero_si128(), mixed = _mm_set1_epi32(0x01020304);
    unsigned long long crc = 0;
    int index = 0;
    for (size_t i = 0; i + 16 <= sizeof bytes; i += 16) {
        __m128i v = _mm_loadu_si128((__m128i *)(bytes + i));
        sum = _mm_add_epi64(sum, _mm_sad_epu8(v, _mm_setzero_si128()));
        mixed = _mm_shuffle_epi8(_mm_xor_si128(mixed, v), _mm_and_si128(v, _mm_set1_epi8(0x8f)));
        mixed = _mm_add_epi16(mixed, _mm_madd_epi16(v, _mm_set1_epi16(3)));
        mixed = _mm_blendv_epi8(mixed, _mm_mullo_epi32(mixed, v), v);
        mixed = _mm_xor_si128(mixed, _mm_packus_epi32(_mm_minpos_epu16(v), _mm_abs_epi16(v)));
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        crc = _mm_crc32_u64(crc, word) + (unsigned)_mm_popcnt_u64(word);
        index += _mm_cmpistri(v, mixed, _SIDD_CMP_EQUAL_ANY);
        index += _mm_cmpestrc(v, 9, mixed, 12, _SIDD_CMP_RANGES);
        index += _mm_testz_si128(v, mixed);
    }
    uint64_t hash = fnv(FNV_START, &sum, 16);
    hash = fnv(hash, &mixed, 16);
    hash = fnv(hash, &crc, 8);
    return fnv(hash, &index, 4);
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 2;
    uint64_t state = 5, hash = FNV_START;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            fa[i][j] = (float)(next_random(&state) % 1000) / 7;
            fb[i][j] = (float)(next_random(&state) % 1000) / 11;
            da[i][j] = (double)(next_random(&state) % 100000) / 3;
            db[i][j] = (double)(next_random(&state) % 100000) / 13;
        }
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)next_random(&state);
    for (int round = 0; round < rounds; round++) {
        matrices();
        hash = fnv(hash, fc, sizeof fc);
        hash = fnv(hash, dc, sizeof dc);
        uint64_t parts[] = {floats(), integers()};
        hash = fnv(hash, parts, sizeof parts);
        fa[round % N][1] += 0.5f;
        bytes[round % 65536] ^= 1;
    }
    printf("sse %d hash %016llx\n", rounds, (unsigned long long)hash);
    return 0;
}
