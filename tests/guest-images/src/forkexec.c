/* forkexec COUNT: COUNT children by fork and exec, COUNT by posix_spawn, COUNT by fork alone. */
#include "check.h"
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

static int reap(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid)
        die("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The exit status of a new image of this program, by fork and exec. */
static int run_image(char *self, char *number)
{
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (!pid) {
        execl(self, self, "child", number, (char *)NULL);
        _exit(99);
    }
    return reap(pid);
}

/* The same by posix_spawn, which is vfork inside. */
static int spawn_image(char *self, char *number)
{
    pid_t pid;
    char *argv[] = {self, "child", number, NULL};
    if (posix_spawn(&pid, self, NULL, NULL, argv, NULL))
        die("posix_spawn");
    return reap(pid);
}

int main(int argc, char **argv)
{
    if (argc == 3)
        return atoi(argv[2]) & 63;
    int count = argc == 2 ? atoi(argv[1]) : 10;
    long sum = 0;
    char number[16];
    for (int i = 0; i < count; i++) {
        snprintf(number, sizeof number, "%d", i);
        sum += run_image(argv[0], number);
        sum += 3 * spawn_image(argv[0], number);
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (!pid)
            _exit(i & 31);
        sum += 7 * reap(pid);
    }
    printf("forkexec %d sum %ld\n", count, sum);
    return 0;
}
