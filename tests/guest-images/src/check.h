/* Shared by the guest programs: a checksum of what they computed, and a fixed pseudo-random sequence. */
#ifndef CHECK_H
#define CHECK_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* FNV-1a over bytes. */
static inline uint64_t fnv(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    while (bytes--)
        hash = (hash ^ *p++) * 0x100000001b3ull;
    return hash;
}
#define FNV_START 0xcbf29ce484222325ull

/* xorshift64: the same numbers on every machine. */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}
#endif
