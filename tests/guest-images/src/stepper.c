/* stepper ROUNDS: a debugger that single-steps a child between two breakpoints, reads and writes its
   registers and memory, and uses the debug registers for a breakpoint and a watchpoint. */
#include "check.h"
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile uint64_t watched;
static char buffer[256], target[256];

__attribute__((noinline)) static uint64_t work(uint64_t seed)
{
    for (int i = 0; i < 50; i++) {
        seed = seed * 31 + (uint64_t)i;
        if (seed & 4)
            seed ^= seed >> 3;
    }
    size_t bytes = 100;
    void *from = buffer, *to = target;
    __asm__ volatile("rep movsb" : "+c"(bytes), "+S"(from), "+D"(to)::"memory");
    return seed;
}

static void child(int rounds)
{
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    uint64_t value = 7;
    for (int i = 0; i < rounds; i++) {
        __asm__ volatile("int3");
        value = work(value);
        sched_yield(); /* a system call with a result that is the same everywhere */
        __asm__ volatile("int3");
        watched = value;
    }
    _exit(value & 63);
}

static int wait_stop(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid)
        die("waitpid");
    return status;
}

static void set_debug_register(pid_t pid, int index, unsigned long value)
{
    if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg) + 8 * (size_t)index, value))
        die("POKEUSER debug register");
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 3;
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (!pid)
        child(rounds);
    wait_stop(pid);
    uint64_t hash = FNV_START;
    unsigned long steps = 0, breakpoints = 0, watches = 0;
    struct user_regs_struct regs;
    set_debug_register(pid, 0, (unsigned long)work);    /* execution */
    set_debug_register(pid, 1, (unsigned long)&watched); /* 8-byte write */
    set_debug_register(pid, 7, 1 | 4 | 9ul << 20);
    for (int i = 0; i < rounds; i++) {
        ptrace(PTRACE_CONT, pid, 0, 0);
        int status = wait_stop(pid);
        if (!WIFSTOPPED(status))
            die("child did not stop");
        for (;;) {
            if (ptrace(PTRACE_SINGLESTEP, pid, 0, 0))
                die("SINGLESTEP");
            status = wait_stop(pid);
            steps++;
            if (ptrace(PTRACE_GETREGS, pid, 0, &regs))
                die("GETREGS");
            unsigned long dr6 =
                (unsigned long)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg) + 48, 0);
            breakpoints += dr6 & 1;
            set_debug_register(pid, 6, 0);
            uint64_t facts[] = {regs.rip - (unsigned long)work, regs.rax, regs.rcx,
                                regs.eflags & ~0x10000ul, dr6 & 0xf};
            hash = fnv(hash, facts, sizeof facts);
            unsigned long before = (unsigned long)ptrace(PTRACE_PEEKTEXT, pid, regs.rip - 1, 0);
            if ((before & 0xff) == 0xcc && steps > 1)
                break;
        }
        ptrace(PTRACE_CONT, pid, 0, 0);
        wait_stop(pid);
        unsigned long dr6 =
            (unsigned long)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg) + 48, 0);
        watches += dr6 >> 1 & 1;
        set_debug_register(pid, 6, 0);
    }
    ptrace(PTRACE_CONT, pid, 0, 0);
    int status = wait_stop(pid);
    printf("stepper %d steps %lu breakpoints %lu watches %lu hash %016llx exit %d\n", rounds, steps,
           breakpoints, watches, (unsigned long long)hash, WEXITSTATUS(status));
    return 0;
}
