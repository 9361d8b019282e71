/* signals ROUNDS: handlers for kill, page faults, divide errors, SSE and x87 exceptions, traps. */
#define _GNU_SOURCE
#include "check.h"
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t usr1, usr2, alarms;
static char *guarded;
static volatile uint64_t faults, fault_hash = FNV_START;
static sigjmp_buf back;

static void on_usr1(int sig) { (void)sig; usr1++; }

static void on_usr2(int sig)
{
    (void)sig;
    usr2++;
    raise(SIGUSR1); /* nested */
}

static void on_alarm(int sig) { (void)sig; alarms++; }

static void on_segv(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    uint64_t offset = (uint64_t)((char *)info->si_addr - guarded);
    uint64_t facts[] = {offset, (uint64_t)info->si_code, (uint64_t)sig,
                        (uint64_t)uc->uc_mcontext.gregs[REG_ERR],
                        (uint64_t)uc->uc_mcontext.gregs[REG_TRAPNO]};
    fault_hash = fnv(fault_hash, facts, sizeof facts);
    faults++;
    if (mprotect(guarded + (offset & ~4095ull), 4096, PROT_READ | PROT_WRITE))
        _exit(3);
}

/* Records which exception it was, and leaves by siglongjmp. */
static void on_exception(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    uint64_t facts[] = {(uint64_t)sig, (uint64_t)info->si_code,
                        (uint64_t)uc->uc_mcontext.gregs[REG_TRAPNO],
                        (uint64_t)uc->uc_mcontext.gregs[REG_ERR]};
    fault_hash = fnv(fault_hash, facts, sizeof facts);
    siglongjmp(back, 1 + (int)facts[2]);
}

static void action(int sig, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_sigaction = handler;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
    if (sigaction(sig, &sa, NULL))
        die("sigaction");
}

static void divide_error(void)
{
    __asm__ volatile("xor %%edx,%%edx; mov $5,%%eax; xor %%ecx,%%ecx; div %%ecx" ::: "eax", "ecx", "edx");
}
static void breakpoint(void) { __asm__ volatile("int3"); }
static void undefined(void) { __asm__ volatile("ud2"); }
static void privileged(void) { __asm__ volatile("hlt"); }
static void noncanonical(void) { *(volatile char *)0x8000000000000000ull = 1; }
static void sse_exception(void)
{
    volatile double zero = 0;
    feenableexcept(FE_DIVBYZERO);
    zero = 1 / zero;
}
static void x87_exception(void)
{
    feenableexcept(FE_DIVBYZERO);
    __asm__ volatile("fld1; fldz; fdivrp; fwait" ::: "st", "st(1)");
}
static void single_step(void)
{
    __asm__ volatile("pushf; orl $0x100,(%%rsp); popf; nop; nop" ::: "cc", "memory");
}

static const struct {
    const char *name;
    void (*cause)(void);
} EXCEPTIONS[] = {{"divide", divide_error}, {"int3", breakpoint},     {"ud2", undefined},
                  {"hlt", privileged},      {"noncanon", noncanonical}, {"sse", sse_exception},
                  {"x87", x87_exception},   {"step", single_step}};

static void exceptions(void)
{
    static const int SIGNALS[] = {SIGFPE, SIGTRAP, SIGILL, SIGSEGV};
    for (size_t i = 0; i < 4; i++)
        action(SIGNALS[i], on_exception);
    for (size_t i = 0; i < sizeof EXCEPTIONS / sizeof *EXCEPTIONS; i++) {
        int got = sigsetjmp(back, 1);
        if (!got)
            EXCEPTIONS[i].cause();
        fesetenv(FE_DFL_ENV);
        printf("exception %s trap %d\n", EXCEPTIONS[i].name, got - 1);
    }
}

int main(int argc, char **argv)
{
    int rounds = argc == 2 ? atoi(argv[1]) : 1000;
    static char alternate[65536];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    if (sigaltstack(&stack, NULL))
        die("sigaltstack");
    signal(SIGUSR1, on_usr1);
    signal(SIGUSR2, on_usr2);
    signal(SIGALRM, on_alarm);
    for (int i = 0; i < rounds; i++)
        kill(getpid(), i % 3 ? SIGUSR1 : SIGUSR2);
    action(SIGSEGV, on_segv);
    enum { PAGES = 256 };
    guarded = mmap(NULL, PAGES * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int repeat = 0; repeat < 1 + rounds / 1000; repeat++) {
        mprotect(guarded, PAGES * 4096, repeat & 1 ? PROT_READ : PROT_NONE);
        for (int i = 0; i < PAGES; i++)
            guarded[i * 4096 + (i * 37 & 4095)] += (char)i;
    }
    exceptions();
    /* How often the timer fires depends on the clock; that it fires does not. */
    struct itimerval timer = {{0, 8000}, {0, 8000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    while (alarms < 5)
        pause();
    printf("signals %d usr1 %d usr2 %d faults %llu hash %016llx alarms ok\n", rounds, (int)usr1,
           (int)usr2, (unsigned long long)faults, (unsigned long long)fault_hash);
    return 0;
}
