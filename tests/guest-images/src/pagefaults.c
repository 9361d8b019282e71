/* pagefaults ROUNDS: map, touch, protect, copy on write, remap and unmap. */
#define _GNU_SOURCE
#include "check.h"
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 10;
    enum { BYTES = 4 << 20 };
    uint64_t hash = FNV_START;
    for (int round = 0; round < rounds; round++) {
        char *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            die("mmap");
        madvise(p, BYTES, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < BYTES; i += 4096)
            p[i] = (char)(i >> 12 ^ (size_t)round);
        for (size_t i = 0; i < BYTES; i += 4096)
            hash = fnv(hash, p + i, 1);
        if (round % 8 == 0) {
            pid_t pid = fork();
            if (pid < 0)
                die("fork");
            if (!pid) {
                for (size_t i = 0; i < BYTES; i += 8192)
                    p[i] ^= 0x55; /* copy on write */
                _exit(p[8192] & 63);
            }
            int status;
            waitpid(pid, &status, 0);
            hash = fnv(hash, &status, sizeof status);
        }
        p = mremap(p, BYTES, BYTES * 2, MREMAP_MAYMOVE);
        if (p == MAP_FAILED)
            die("mremap");
        mprotect(p, 4096 * 16, PROT_READ);
        hash = fnv(hash, p + 4096 * 15, 4);
        hash = fnv(hash, p + BYTES + 4096, 4); /* zero page */
        munmap(p, BYTES * 2);
    }
    printf("pagefaults %d hash %016llx\n", rounds, (unsigned long long)hash);
    return 0;
}
