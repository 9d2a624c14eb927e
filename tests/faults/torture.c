/* Each call of a job fails in turn: jobs of the program `walsh` on a tiny model, with shim.c preloaded.
 *
 *   torture SHIM WALSH SOURCE [--most N] [--part I/N] [--seed N] [--verbose] [JOB...]
 *
 * A job runs once as it is, which counts its calls and gives what is right. Then it runs again for every
 * call, or for about N of them drawn by the seed, with that call failing; with --part for each N-th, from I
 * on, so that several processes can share a job. Each run ends by itself: either
 * with 0 and what is right, because the program could do without, or with another status and a message that
 * names a file or what was short. What it writes is there as a whole or not at all; a job that leaves
 * something to go on with is gone on with and gives what is right. No block of memory is held at the end that
 * the job as it is does not hold. Exit 1 where any of that is not so. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit/temporary.h"

#define MOST_ARGUMENTS 32
#define MOST_TEXT ((size_t)1 << 16)
#define SECONDS 600 /* for one run, which may wait for a CPU */

#define TINY "SOURCE/tests/fixtures/golden/tiny-"
#define RUN "ab cd", "-n", "3", "--seed", "1", "--quiet"
#define QUANTIZE                                                                                             \
    "quantize", TINY "qwen2", "OUT", "--bits", "2", "--calibration", "WORK/text", "--samples", "2",          \
        "--sample-tokens", "16", "--passes", "1", "--quiet"
#define FINETUNE                                                                                             \
    "finetune", TINY "qwen2", "--data", "WORK/text", "--output", "OUT", "--rank", "2", "--steps", "2",       \
        "--grad-accumulation", "1", "--context", "32", "--save-every", "1", "--quiet"
#define PREFIX                                                                                               \
    "run", TINY "qwen2", "--file", "WORK/prompt", "-n", "3", "--seed", "1", "--quiet", "--prefix-store"

/* SOURCE, WORK and OUT in arguments stand for the repository, a directory that lasts and what the job writes.
 * Calls come in one order where a job has one thread. */
static const struct job {
    const char *name;
    bool writes;      /* OUT */
    bool answers;     /* standard output is to be the same */
    bool resumes;     /* what is left is gone on with by --resume */
    bool two_threads; /* not one */
    const char
        *file; /* of OUT: what counts, where the others tell the time; such a job works in OUT itself */
    const char *arguments[MOST_ARGUMENTS];
} jobs[] = {
    {.name = "inspect", .arguments = {"inspect", TINY "qwen2"}},
    {.name = "run", .answers = true, .arguments = {"run", TINY "qwen2", RUN}},
    {.name = "run_threads", .answers = true, .two_threads = true, .arguments = {"run", TINY "qwen2", RUN}},
    {.name = "run_read", .answers = true, .arguments = {"run", TINY "gpt-oss-mxfp4", RUN, "--no-mmap"}},
    {.name = "run_lalamo", .answers = true, .arguments = {"run", TINY "lalamo", RUN}},
    {.name = "adapter",
     .answers = true,
     .arguments = {"run", TINY "qwen2", RUN, "--adapter", TINY "qwen2-lora"}},
    {.name = "prefix", .answers = true, .arguments = {PREFIX, "OUT"}},
    {.name = "prefix_hit", .answers = true, .arguments = {PREFIX, "WORK/store"}},
    {.name = "quantize", .writes = true, .resumes = true, .arguments = {QUANTIZE}},
    {.name = "quantize_threads",
     .writes = true,
     .resumes = true,
     .two_threads = true,
     .arguments = {QUANTIZE}},
    {.name = "blocks",
     .writes = true,
     .resumes = true,
     .arguments = {"quantize", TINY "gpt-oss", "OUT", "--format", "mxfp4", "--quiet"}},
    {.name = "merge",
     .writes = true,
     .arguments = {"merge", TINY "qwen2", TINY "qwen2-lora", "OUT", "--quiet"}},
    {.name = "finetune",
     .writes = true,
     .resumes = true,
     .file = "adapter_model.safetensors",
     .arguments = {FINETUNE}},
    {.name = "finetune_threads",
     .writes = true,
     .resumes = true,
     .two_threads = true,
     .file = "adapter_model.safetensors",
     .arguments = {FINETUNE}},
};

static const char *shim, *program, *source;
static bool verbose;
static unsigned failures;
static long part = 1, parts = 1;

/* What one run did. */
struct outcome {
    int status; /* exit status, or -signal */
    long calls, live;
    char failed[128]; /* "NAME ADDRESS" */
    char out[MOST_TEXT], err[MOST_TEXT];
    uint64_t written; /* a hash of OUT; 0: it is not there */
};

static uint64_t mix(uint64_t hash, const void *data, size_t size) /* FNV-1a */
{
    const unsigned char *p = data;
    for (size_t i = 0; i < size; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

static size_t read_text(const char *path, char *text)
{
    FILE *file = fopen(path, "rb");
    const size_t size = file ? fread(text, 1, MOST_TEXT - 1, file) : 0;
    if (file) fclose(file);
    text[size] = 0;
    return size;
}

/* Names and contents of the files of a directory, in any order, or of `only` one of them. */
static uint64_t hash_directory(const char *path, const char *only)
{
    static unsigned char data[1 << 20];
    uint64_t sum = 0;
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        char name[1024];
        size_t size;
        if (entry->d_name[0] == '.' || (only && strcmp(entry->d_name, only) != 0)) continue;
        uint64_t hash = mix(0xcbf29ce484222325u, entry->d_name, strlen(entry->d_name));
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        FILE *file = fopen(name, "rb");
        while (file && (size = fread(data, 1, sizeof data, file)) > 0) hash = mix(hash, data, size);
        if (file) fclose(file);
        sum += hash | 1;
    }
    closedir(directory);
    return sum;
}

static void remove_tree(const char *path)
{
    (void)nftw(path, temporary_remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *path, const char *text, unsigned times)
{
    FILE *file = fopen(path, "wb");
    for (unsigned i = 0; file && i < times; i++) fputs(text, file);
    if (!file || fclose(file) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(2);
    }
}

/* An argument with its first word replaced */
static const char *expand(const char *argument, char *room, size_t size)
{
    static const char *const words[] = {"SOURCE", "WORK", "OUT"};
    const char *const values[] = {source, temporary_directory, temporary_path("out")};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const size_t length = strlen(words[i]);
        if (strncmp(argument, words[i], length) != 0) continue;
        snprintf(room, size, "%s%s", values[i], argument + length);
        return room;
    }
    return argument;
}

static void execute(const struct job *job, long at, bool resume)
{
    static char rooms[MOST_ARGUMENTS][1024];
    const char *argv[MOST_ARGUMENTS + 4] = {program};
    char number[32];
    size_t n = 1;
    for (size_t i = 0; job->arguments[i]; i++)
        argv[n++] = expand(job->arguments[i], rooms[i], sizeof rooms[i]);
    argv[n++] = job->two_threads ? "--threads=2" : "--threads=1";
    if (resume) argv[n++] = "--resume";
    snprintf(number, sizeof number, "%ld", at);
    setenv("FAULTS_AT", number, 1);
    setenv("FAULTS_REPORT", temporary_path("report"), 1);
    setenv("LD_PRELOAD", shim, 1);
    const int out = open(temporary_path("stdout"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int err = open(temporary_path("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(out, 1);
    dup2(err, 2);
    alarm(SECONDS);
    execv(program, (char *const *)(uintptr_t)argv);
    _exit(127);
}

static void run(const struct job *job, long at, bool resume, struct outcome *o)
{
    int status;
    char report[MOST_TEXT];
    remove(temporary_path("report"));
    const pid_t child = fork();
    if (child == 0) execute(job, at, resume);
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("torture");
        exit(2);
    }
    *o = (struct outcome){.status = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status)};
    read_text(temporary_path("stdout"), o->out);
    read_text(temporary_path("stderr"), o->err);
    read_text(temporary_path("report"), report);
    if (sscanf(report, "%ld %ld %127[^\n]", &o->calls, &o->live, o->failed) != 3) o->calls = -1;
    o->written = job->writes ? hash_directory(temporary_path("out"), job->file) : 0;
}

/* Names a file, or says what there was too little of. */
static bool is_clear(const char *message)
{
    static const char *const words[] = {"/", "memory", "bytes", ".json", ".safetensors", "thread"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(message, words[i])) return true;
    return false;
}

static void complain(const struct job *job, long at, const struct outcome *o, const char *what)
{
    failures++;
    printf("FAILED  %s, call %ld (%s): %s; status %d, %s\n", job->name, at, o->failed, what, o->status,
           o->err[0] ? o->err : "no message\n");
}

/* Some of the memory of JSON ends the program at once where it is not there (app/main.c): what it held is the
 * system's to take back, and another job's directory may be left. */
static bool killed(const struct outcome *o)
{
    return strstr(o->err, "bytes for JSON") != NULL;
}

static void check_rest(const struct job *job, long at, const struct outcome *right, const struct outcome *o)
{
    static struct outcome again;
    const char *partial = temporary_path("out.partial");
    const bool left = job->file ? !o->written : access(partial, F_OK) == 0;
    if (left && !job->resumes && killed(o)) return;
    if (left && (!job->resumes || o->written))
        complain(job, at, o, "it leaves a partial directory");
    else if (left) {
        run(job, 0, true, &again);
        if (again.status != 0 || again.written != right->written)
            complain(job, at, &again, "--resume does not go on to what is right");
    }
}

static void check(const struct job *job, long at, const struct outcome *right, const struct outcome *o)
{
    if (o->status < 0 || o->status > 3)
        complain(job, at, o, "it does not end by itself");
    else if (o->status == 0 &&
             ((job->answers && strcmp(o->out, right->out) != 0) || o->written != right->written))
        complain(job, at, o, "it ends well with something else");
    else if (o->status != 0 && !is_clear(o->err))
        complain(job, at, o, "its message names neither a file nor what was short");
    else if (o->written && o->written != right->written)
        complain(job, at, o, "what it writes is half there");
    else if (o->calls >= 0 && o->live > right->live && !killed(o))
        complain(job, at, o, "memory is not freed");
    else if (o->calls < 0)
        complain(job, at, o, "it ended without a report");
    if (job->writes) check_rest(job, at, right, o);
}

static uint64_t draw(uint64_t *state) /* SplitMix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void clear(void)
{
    remove_tree(temporary_path("out"));
    remove_tree(temporary_path("out.partial"));
}

static void torture(const struct job *job, long most, uint64_t *seed)
{
    static struct outcome right, o;
    long runs = 0, refused = 0;
    for (unsigned i = 0; i < 2; i++) { /* the second finds the prefix store that the first has filled */
        clear();
        run(job, 0, false, &right);
    }
    if (right.status != 0 || right.calls <= 0 || (job->writes && !right.written)) {
        complain(job, 0, &right, "it fails without a fault");
        return;
    }
    const long step = most > 0 && right.calls > most ? right.calls / most : parts,
               first = step == parts ? part : 1 + (long)(draw(seed) % (uint64_t)step);
    for (long at = first; at <= right.calls; at += step) {
        clear();
        run(job, at, false, &o);
        check(job, at, &right, &o);
        runs++;
        refused += o.status != 0;
        if (verbose) printf("%s %ld (%s): %d, %s\n", job->name, at, o.failed, o.status, o.err);
    }
    clear();
    printf("%-16s %6ld calls, %6ld runs, %6ld refused, %6ld did without\n", job->name, right.calls, runs,
           refused, runs - refused);
    if (refused == 0) complain(job, 0, &right, "no fault had an effect");
    fflush(stdout);
}

static bool wanted(const struct job *job, int argc, char **argv, int first)
{
    for (int i = first; i < argc; i++)
        if (strcmp(argv[i], job->name) == 0) return true;
    return first == argc;
}

int main(int argc, char **argv)
{
    long most = 0;
    uint64_t seed = (uint64_t)getpid();
    int i = 4;
    if (argc < 4) {
        fprintf(stderr,
                "usage: %s SHIM WALSH SOURCE [--most N] [--part I/N] [--seed N] [--verbose] [JOB...]\n",
                argv[0]);
        return 2;
    }
    shim = argv[1];
    program = argv[2];
    source = argv[3];
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--verbose") == 0)
            verbose = true;
        else if (strcmp(argv[i], "--most") == 0 && i + 1 < argc)
            most = atol(argv[++i]);
        else if (strcmp(argv[i], "--part") == 0 && i + 1 < argc &&
                 sscanf(argv[i + 1], "%ld/%ld", &part, &parts) == 2)
            i++;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 10);
    }
    printf("seed %llu\n", (unsigned long long)seed);
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0);
    if (temporary_make(NULL) != 0) return 2;
    put(temporary_path("text"), "abcdefgh ijklmnop qrstuvwx yz. ", 20);
    put(temporary_path("prompt"), "It was late in the evening, and nobody came. ", 2);
    for (size_t j = 0; j < sizeof jobs / sizeof *jobs; j++)
        if (wanted(&jobs[j], argc, argv, i)) torture(&jobs[j], most, &seed);
    remove_tree(temporary_directory);
    printf("%u failures\n", failures);
    return failures != 0;
}
