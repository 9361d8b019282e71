/*
 * 32-bit code that a C library does not contain: decimal arithmetic with all flags, the segment and
 * frame instructions, 16-bit addresses, TLS through GS, faults, and far jumps between the modes.
 * Freestanding, so that no 32-bit C library is needed. Prints check sums.
 */
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

static u32 syscall3(u32 number, u32 a, u32 b, u32 c)
{
    u32 result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static void print(const char *text)
{
    u32 length = 0;
    while (text[length])
        length++;
    syscall3(4, 1, (u32)text, length);
}

static void print_number(const char *name, u32 value)
{
    char line[12];
    print(name);
    line[0] = ' ';
    for (int i = 0; i < 8; i++)
        line[1 + i] = "0123456789abcdef"[value >> (28 - 4 * i) & 15];
    line[9] = '\n';
    line[10] = 0;
    print(line);
}

static u32 mix(u32 sum, u32 value) { return (sum << 5 | sum >> 27) * 9 + value; }

/* Runs one instruction on AX with the given flags; mixes AX and the arithmetic flags after it. */
#define ADJUST(name, code)                                                                        \
    static u32 name(void)                                                                         \
    {                                                                                             \
        u32 sum = 0;                                                                              \
        for (u32 value = 0; value < 65536; value += value < 4096 ? 1 : 251) {                     \
            for (u32 set = 0; set < 4; set++) {                                                   \
                u32 flags = (set & 1) | (set & 2) << 3 | 0x202 | (value & 1 ? 0x8c4 : 0);         \
                u32 ax = value | 0xabcd0000;                                                      \
                __asm__ volatile("push %1; popf\n\t" code "\n\tpushf; pop %1"                     \
                                 : "+a"(ax), "+r"(flags)                                          \
                                 :                                                                \
                                 : "cc", "memory");                                               \
                sum = mix(mix(sum, ax), flags & 0x8d5);                                           \
            }                                                                                     \
        }                                                                                         \
        return sum;                                                                               \
    }
ADJUST(run_aaa, "aaa")
ADJUST(run_aas, "aas")
ADJUST(run_daa, "daa")
ADJUST(run_das, "das")
ADJUST(run_aam, "aam")
ADJUST(run_aad, "aad")
ADJUST(run_aam7, ".byte 0xd4, 7")
ADJUST(run_aad200, ".byte 0xd5, 200")
ADJUST(run_salc, ".byte 0xd6")
ADJUST(run_inc, ".byte 0x40; .byte 0x66, 0x40")
ADJUST(run_dec, ".byte 0x48; .byte 0x66, 0x48")
ADJUST(run_alias, ".byte 0x82, 0xc0, 0x7f")

static u32 frames(void)
{
    u32 sum = 0, before, after, value;
    /* ENTER copies two frame pointers from the frame that EBP names. */
    __asm__ volatile("push %%ebp; push $0x111; push $0x222; lea 8(%%esp), %%ebp; mov %%esp, %1\n\t"
                     "pusha; push $7; popw %%ax; addl $2, %%esp; popa\n\t"
                     "pushaw; popaw\n\t"
                     "enter $32, $3; mov -4(%%ebp), %0; sub -8(%%ebp), %0; leave\n\t"
                     "mov %%esp, %2; add $8, %%esp; pop %%ebp"
                     : "=&a"(value), "=&c"(before), "=&d"(after)
                     :
                     : "memory", "cc");
    sum = mix(sum, after - before);
    sum = mix(sum, value);
    /* The upper half of a slot with a selector: only its lower half is certain. */
    __asm__ volatile("push %%ds; pop %0; push %%ss; pop %1; push %%es; pop %%es"
                     : "=r"(before), "=r"(after));
    sum = mix(sum, (before & 0xffff) == (after & 0xffff));
    __asm__ volatile("push $0x12345678; lea 4(%%esp), %%esp; push %%ds; pop %0" : "=r"(value));
    sum = mix(sum, value);
    __asm__ volatile("pushw $0x1234; pushw $0x5678; pop %0" : "=r"(value));
    sum = mix(sum, value);
    __asm__ volatile("mov $0x12345, %%ecx; 1: incl %%eax; loopw 1b" : "=a"(value) : "a"(0) : "ecx", "cc");
    return mix(sum, value);
}

struct far_pointer {
    u32 offset;
    u16 selector;
} __attribute__((packed));

static u32 segments(void)
{
    u16 ds, rpl = 0x28;
    u32 value, sum = 0, zero;
    static struct far_pointer pointer;
    __asm__ volatile("mov %%ds, %0" : "=r"(ds));
    pointer.offset = 0xcafe;
    pointer.selector = ds;
    __asm__ volatile("push %%es; les %1, %0; pop %%es" : "=r"(value) : "m"(pointer));
    sum = mix(sum, value);
    __asm__ volatile("push %%ds; lds %1, %0; pop %%ds" : "=r"(value) : "m"(pointer));
    sum = mix(sum, value);
    __asm__ volatile("lss %1, %%eax; mov %%eax, %0" : "=r"(value) : "m"(pointer) : "eax");
    sum = mix(sum, value);
    __asm__ volatile("arpl %2, %0; setz %b1" : "+r"(rpl), "=&q"(zero) : "r"((u16)3) : "cc");
    sum = mix(mix(sum, rpl), zero & 1);
    __asm__ volatile("lar %1, %0" : "=r"(value) : "r"((u32)ds) : "cc");
    sum = mix(sum, value);
    __asm__ volatile("lsl %1, %0" : "=r"(value) : "r"((u32)ds) : "cc");
    return mix(sum, value);
}

struct user_desc {
    u32 entry, base, limit, flags;
};

static u32 tls(void)
{
    static u32 block[16];
    struct user_desc desc = {0xffffffff, (u32)(block + 8), 0xfffff, 0x51};
    u32 sum = 0, value;
    for (int i = 0; i < 16; i++)
        block[i] = 0x1000 * (u32)i;
    if (syscall3(243, (u32)&desc, 0, 0) != 0)
        return 0xdead;
    __asm__ volatile("mov %w0, %%gs" : : "r"(desc.entry * 8 + 3));
    __asm__ volatile("mov %%gs:4, %0" : "=r"(value));
    sum = mix(sum, value);
    /* Negative offsets wrap at 4 GiB, as thread-local variables need it. */
    __asm__ volatile("mov %%gs:0xfffffff8, %0" : "=r"(value));
    sum = mix(sum, value);
    __asm__ volatile("mov $-4, %%ecx; addl $5, %%gs:(%%ecx); mov %%gs:-4, %0" : "=r"(value) : : "ecx", "cc");
    sum = mix(sum, value);
    __asm__ volatile("mov %%gs, %0" : "=r"(value));
    return mix(sum, value == desc.entry * 8 + 3);
}

/* 16-bit addresses reach the first 64 KiB only, which no process maps: LEA shows them. */
static u32 short_addresses(void)
{
    u32 sum = 0, value;
    __asm__ volatile("mov $0x12345678, %%ebx; mov $0x9abcdef0, %%esi; mov $0xffffffff, %0\n\t"
                     ".byte 0x67, 0x8d, 0x40, 0x11"
                     : "=&a"(value) : : "ebx", "esi");
    sum = mix(sum, value);
    __asm__ volatile(".byte 0x67, 0x8d, 0x06, 0x34, 0x12" : "=a"(value));
    sum = mix(sum, value);
    __asm__ volatile("mov $0xffff0001, %%ecx; jcxz 1f; movl $5, %0; jmp 2f; 1: movl $6, %0; 2:"
                     : "=r"(value) : : "ecx");
    return mix(sum, value);
}

static volatile u32 fault_count, fault_sum;
static u32 fault_skip;

struct context {
    u32 gs, fs, es, ds, edi, esi, ebp, esp, ebx, edx, ecx, eax, trap, error, eip, cs, flags;
};

/* Handler of all signals: notes the fault and goes on behind the instruction. */
__attribute__((used)) static void note(u32 signal, struct context *context)
{
    fault_count++;
    fault_sum = mix(mix(mix(fault_sum, signal), context->trap), context->error);
    context->eip += fault_skip;
}
/* The old frame: return address, number, then the context. */
__asm__("handler: mov 4(%esp), %eax; lea 8(%esp), %edx; push %edx; push %eax; call note\n\t"
        "add $8, %esp; pop %eax; pop %eax; mov $119, %eax; int $0x80");
extern char handler[];

struct action {
    void *handler;
    u32 mask, flags;
    void *restorer;
};

static void report(const char *name)
{
    print_number(name, mix(fault_sum, fault_count));
    fault_sum = fault_count = 0;
}

static void faults(void)
{
    struct action action = {handler, 0, 0x40000000, 0};
    int bounds[2] = {-5, 5};
    static const u8 signals[] = {4, 5, 7, 8, 11};
    for (u32 i = 0; i < sizeof signals; i++)
        syscall3(67, signals[i], (u32)&action, 0);
    fault_skip = 2;
    __asm__ volatile(".byte 0x62, 0x03" : : "a"(5), "b"(bounds) : "memory");
    __asm__ volatile(".byte 0x62, 0x03" : : "a"(6), "b"(bounds) : "memory");
    __asm__ volatile(".byte 0x62, 0x03" : : "a"(-6), "b"(bounds) : "memory");
    report("bound");
    /* A null segment. */
    __asm__ volatile("push %%es; xor %%eax, %%eax; mov %%eax, %%es; .byte 0x26, 0x8b, 0x03; pop %%es"
                     : : "b"(bounds) : "eax", "memory", "cc");
    report("null");
    fault_skip = 0;
    __asm__ volatile("mov $0x7f, %%al; add $1, %%al; into" : : : "eax", "cc", "memory");
    __asm__ volatile("xor %%eax, %%eax; into" : : : "eax", "cc", "memory");
    report("into");
    __asm__ volatile("int3" : : : "memory");
    report("int3");
    fault_skip = 2;
    __asm__ volatile(".byte 0xd4, 0" : : "a"(1) : "cc", "memory");
    report("aam0");
    __asm__ volatile(".byte 0x8b, 0x03" : : "b"(0xfffffffe) : "eax", "memory");
    report("wrap");
    __asm__ volatile(".byte 0x0f, 0x0b" : : : "memory");
    report("ud2");
    fault_skip = 1;
    __asm__ volatile("hlt; cli" : : : "memory");
    report("privileged");
}

/* To 64-bit code and back: what a register holds there, and that the upper half is cleared here. */
static u32 far_transfers(void)
{
    u32 low, high;
    __asm__ volatile("ljmp $0x33, $1f\n"
                     "1: .byte 0x48, 0xb8; .long 0x89abcdef, 0x01234567\n\t" /* mov rax, imm64 */
                     ".byte 0x48, 0x89, 0xc1\n\t"                           /* mov rcx, rax */
                     ".byte 0x48, 0xc1, 0xe9, 0x20\n\t"                     /* shr rcx, 32 */
                     ".byte 0x6a, 0x23, 0x68; .long 2f\n\t"                 /* push 0x23; push 2f */
                     ".byte 0x48, 0xcb\n"                                   /* retfq */
                     "2: mov %%eax, %0; inc %%eax"
                     : "=&r"(low), "=c"(high)
                     :
                     : "eax", "cc", "memory");
    return mix(low, high);
}

__attribute__((used)) static void run(void)
{
    print_number("aaa", run_aaa());
    print_number("aas", run_aas());
    print_number("daa", run_daa());
    print_number("das", run_das());
    print_number("aam", run_aam());
    print_number("aad", run_aad());
    print_number("aam7", run_aam7());
    print_number("aad200", run_aad200());
    print_number("salc", run_salc());
    print_number("inc", run_inc());
    print_number("dec", run_dec());
    print_number("alias", run_alias());
    print_number("frames", frames());
    print_number("segments", segments());
    print_number("tls", tls());
    print_number("short", short_addresses());
    faults();
    print_number("far", far_transfers());
    syscall3(1, 0, 0, 0);
}

__asm__(".globl _start; _start: and $-16, %esp; call run; hlt");
