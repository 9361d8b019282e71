/* gendata KIND BYTES: known data on standard output. KIND is "text" (lines of words) or "bytes". */
#include "check.h"
#include <string.h>

static const char *const WORDS[] = {"alpha", "bravo", "charlie", "delta", "echo", "foxtrot",
                                    "golf", "hotel", "india", "juliet", "kilo", "lima",
                                    "mike", "november", "oscar", "papa"};

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int text = !strcmp(argv[1], "text");
    size_t left = strtoull(argv[2], NULL, 10);
    uint64_t state = 0x1234567;
    char line[128];
    while (left) {
        uint64_t r = next_random(&state);
        size_t bytes;
        if (text) {
            bytes = (size_t)snprintf(line, sizeof line, "%s %s %u %s\n", WORDS[r & 15],
                                     WORDS[r >> 4 & 15], (unsigned)(r >> 8 & 0xfffff),
                                     WORDS[r >> 60]);
        } else {
            memcpy(line, &r, bytes = sizeof r);
        }
        if (bytes > left)
            bytes = left;
        fwrite(line, 1, bytes, stdout);
        left -= bytes;
    }
    return fflush(stdout) != 0;
}
