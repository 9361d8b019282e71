/* pipes ROUNDS: two processes hand a counter to and fro through two pipes, then a bulk transfer. */
#include "check.h"
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void transfer(int fd, void *data, size_t bytes, int writing)
{
    char *p = data;
    while (bytes) {
        ssize_t n = writing ? write(fd, p, bytes) : read(fd, p, bytes);
        if (n <= 0)
            die(writing ? "write" : "read");
        p += n;
        bytes -= (size_t)n;
    }
}

static void child(int in, int out, int rounds)
{
    uint64_t value;
    for (int i = 0; i < rounds; i++) {
        transfer(in, &value, sizeof value, 0);
        value = value * 6364136223846793005ull + 1442695040888963407ull;
        transfer(out, &value, sizeof value, 1);
    }
    static char block[65536];
    uint64_t state = 99;
    for (int i = 0; i < 128; i++) {
        for (size_t k = 0; k < sizeof block; k += 8) {
            uint64_t r = next_random(&state);
            memcpy(block + k, &r, 8);
        }
        transfer(out, block, sizeof block, 1);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 1000;
    int to[2], from[2];
    if (pipe(to) || pipe(from))
        die("pipe");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (!pid)
        child(to[0], from[1], rounds);
    uint64_t value = 1;
    for (int i = 0; i < rounds; i++) {
        transfer(to[1], &value, sizeof value, 1);
        transfer(from[0], &value, sizeof value, 0);
    }
    uint64_t hash = FNV_START;
    static char block[4096];
    for (int i = 0; i < 128 * 16; i++) {
        transfer(from[0], block, sizeof block, 0);
        hash = fnv(hash, block, sizeof block);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("pipes %d value %016llx bulk %016llx status %d\n", rounds, (unsigned long long)value,
           (unsigned long long)hash, status);
    return 0;
}
