/* Counts the calls of a process, its threads and its children that touch files under a directory,
   and makes one of them fail, or send a signal before it is done. `tests/faults.py` compiles it,
   preloads it and documents the variables. Calls within the C library itself, as of fwrite, do not
   pass here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *const KINDS[] = {"create", "write", "sync", "rename", "remove", "read",
                                    "network"};
enum { CREATE, WRITE, SYNC, RENAME, REMOVE, READ, NETWORK, NUM_KINDS };

/* In memory that all processes of a run share: the number of counted calls. */
static atomic_long *count;
static int log_file = -1;
static char under[PATH_MAX];
static int counted[NUM_KINDS];
static long at;            /* the call that fails, counted from 1; 0 for none */
static int then;           /* an errno, or minus a signal */
static int lasting;        /* whether all later calls fail too */
static int torn;           /* whether a write is done by half first */
static long delay;         /* microseconds from the call to the signal */

static const char *given(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* Reads the variables. Called when a process starts, and by a process that was forked after it has
   changed them. */
__attribute__((constructor)) void faults_arm(void) {
    const char *path = getenv("FAULTS_LOG");
    count = NULL;
    if (!path || !*path)
        return;
    strncpy(under, given("FAULTS_UNDER"), sizeof under - 1);
    for (int kind = 0; kind < NUM_KINDS; kind++)
        counted[kind] = strstr(given("FAULTS_CALLS"), KINDS[kind]) != NULL;
    at = atol(given("FAULTS_AT"));
    then = atoi(given("FAULTS_THEN"));
    lasting = *given("FAULTS_LASTING") == '1';
    torn = *given("FAULTS_TORN") == '1';
    delay = atol(given("FAULTS_DELAY"));
    log_file = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.count", path);
    int file = open(name, O_RDWR | O_CLOEXEC);
    void *shared = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (log_file < 0 || file < 0 || shared == MAP_FAILED) {
        perror("faults.c");
        _exit(125);
    }
    close(file);
    count = shared;
}

static void *signal_later(void *unused) {
    (void)unused;
    nanosleep(&(struct timespec){delay / 1000000, delay % 1000000 * 1000}, NULL);
    kill(getpid(), -then);
    return NULL;
}

/* Counts a call and returns whether it is the one that fails. */
static int is_due(int kind, const char *call, const char *path) {
    long number = atomic_fetch_add(count, 1) + 1;
    int due = at && (number == at || (lasting && number > at));
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    dprintf(log_file, "%ld %ld.%06ld %s %s %d %s\n", number, (long)now.tv_sec, now.tv_nsec / 1000,
            KINDS[kind], call, (int)getpid(), path);
    return due;
}

/* Sends the signal, or returns the error of a call that is due. */
static int strike(void) {
    if (then > 0)
        return then;
    pthread_t thread;
    if (!delay)
        kill(getpid(), -then);
    else if (!pthread_create(&thread, NULL, signal_later, NULL))
        pthread_detach(thread);
    return 0;
}

static int is_under(const char *path) {
    size_t length = strlen(under);
    return length && !strncmp(path, under, length) && (path[length] == '/' || !path[length]);
}

/* The absolute path of `path` in the open directory `folder`. */
static void resolve(int folder, const char *path, char *whole) {
    char link[64];
    ssize_t length = 0;
    if (*path != '/') {
        if (folder == AT_FDCWD)
            strcpy(link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, whole, PATH_MAX - 1);
        length = length < 0 ? 0 : length;
        whole[length++] = '/';
    }
    snprintf(whole + length, PATH_MAX - length, "%s", path);
}

/* Whether a call is due. Of its two paths, of which the second may be NULL, one under the directory
   is enough. */
static int path_is_due(int kind, const char *call, int folder, const char *path, int folder2,
                       const char *path2) {
    if (!count || !counted[kind])
        return 0;
    int before = errno;
    char whole[2 * PATH_MAX];
    resolve(folder, path, whole);
    if (path2 && !is_under(whole))
        resolve(folder2, path2, whole);
    int due = is_under(whole) && is_due(kind, call, whole);
    errno = before;
    return due;
}

static int file_is_due(int kind, const char *call, int file) {
    if (!count || !(counted[kind] || counted[NETWORK]))
        return 0;
    int before = errno;
    char link[64], whole[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    whole[length < 0 ? 0 : length] = 0;
    int due = counted[kind] && is_under(whole) && is_due(kind, call, whole);
    if (counted[NETWORK] && !strncmp(whole, "socket:", 7)) {
        int family = 0;
        socklen_t size = sizeof family;
        getsockopt(file, SOL_SOCKET, SO_DOMAIN, &family, &size);
        due = (family == AF_INET || family == AF_INET6) && is_due(NETWORK, call, whole);
    }
    errno = before;
    return due;
}

#define FAIL                       \
    do {                           \
        int error = strike();      \
        if (error) {               \
            errno = error;         \
            return -1;             \
        }                          \
    } while (0)

#define REAL(result, name, ...)                          \
    static result (*real)(__VA_ARGS__);                  \
    if (!real)                                           \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* A call on an open file, and one on a path. */
#define ON_FILE(result, name, kind, file, arguments, ...) \
    result name(__VA_ARGS__) {                            \
        REAL(result, name, __VA_ARGS__);                  \
        if (file_is_due(kind, #name, file))               \
            FAIL;                                         \
        return real arguments;                            \
    }
#define ON_PATHS(name, kind, folder, path, folder2, path2, arguments, ...)    \
    int name(__VA_ARGS__) {                                                   \
        REAL(int, name, __VA_ARGS__);                                         \
        if (path_is_due(kind, #name, folder, path, folder2, path2))           \
            FAIL;                                                             \
        return real arguments;                                                \
    }
#define ON_PATH(name, kind, folder, path, arguments, ...) \
    ON_PATHS(name, kind, folder, path, 0, NULL, arguments, __VA_ARGS__)

/* Opening a file creates it, empties it, or is the first read of it. */
static int kind_of_open(int flags) {
    return flags & (O_CREAT | O_TRUNC) || (flags & O_TMPFILE) == O_TMPFILE ? CREATE : READ;
}

#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        REAL(int, name, const char *, int, ...);                    \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = va_arg(more, mode_t);                         \
        va_end(more);                                               \
        if (path_is_due(kind_of_open(flags), #name, AT_FDCWD, path, 0, NULL)) \
            FAIL;                                                   \
        return real(path, flags, mode);                             \
    }
#define OPENAT(name)                                                \
    int name(int folder, const char *path, int flags, ...) {        \
        REAL(int, name, int, const char *, int, ...);               \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = va_arg(more, mode_t);                         \
        va_end(more);                                               \
        if (path_is_due(kind_of_open(flags), #name, folder, path, 0, NULL))  \
            FAIL;                                                   \
        return real(folder, path, flags, mode);                     \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
ON_PATH(mkdir, CREATE, AT_FDCWD, path, (path, mode), const char *path, mode_t mode)
ON_PATH(mkdirat, CREATE, folder, path, (folder, path, mode), int folder, const char *path,
        mode_t mode)
ON_PATH(link, CREATE, AT_FDCWD, to, (path, to), const char *path, const char *to)
ON_PATH(symlink, CREATE, AT_FDCWD, to, (path, to), const char *path, const char *to)
ON_PATH(unlink, REMOVE, AT_FDCWD, path, (path), const char *path)
ON_PATH(unlinkat, REMOVE, folder, path, (folder, path, flags), int folder, const char *path,
        int flags)
ON_PATH(rmdir, REMOVE, AT_FDCWD, path, (path), const char *path)
ON_PATH(remove, REMOVE, AT_FDCWD, path, (path), const char *path)
ON_PATH(truncate, WRITE, AT_FDCWD, path, (path, size), const char *path, off_t size)
ON_PATH(truncate64, WRITE, AT_FDCWD, path, (path, size), const char *path, off64_t size)
ON_PATHS(rename, RENAME, AT_FDCWD, path, AT_FDCWD, to, (path, to), const char *path, const char *to)
ON_PATHS(renameat, RENAME, folder, path, folder2, to, (folder, path, folder2, to), int folder,
         const char *path, int folder2, const char *to)
ON_PATHS(renameat2, RENAME, folder, path, folder2, to, (folder, path, folder2, to, flags),
         int folder, const char *path, int folder2, const char *to, unsigned flags)

/* A write that fails or kills may be done by half first, as by a process that dies in it. */
ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (file_is_due(WRITE, "write", file)) {
        if (torn && (then > 0 || then == -SIGKILL))
            real(file, data, size / 2);
        FAIL;
    }
    return real(file, data, size);
}
ON_FILE(ssize_t, writev, WRITE, file, (file, parts, size), int file, const struct iovec *parts,
        int size)
ON_FILE(ssize_t, pwrite, WRITE, file, (file, data, size, start), int file, const void *data,
        size_t size, off_t start)
ON_FILE(ssize_t, pwrite64, WRITE, file, (file, data, size, start), int file, const void *data,
        size_t size, off64_t start)
ON_FILE(ssize_t, sendfile, WRITE, to, (to, from, start, size), int to, int from, off_t *start,
        size_t size)
ON_FILE(ssize_t, sendfile64, WRITE, to, (to, from, start, size), int to, int from, off64_t *start,
        size_t size)
ON_FILE(ssize_t, copy_file_range, WRITE, to, (from, start, to, target, size, flags), int from,
        off64_t *start, int to, off64_t *target, size_t size, unsigned flags)
ON_FILE(int, ftruncate, WRITE, file, (file, size), int file, off_t size)
ON_FILE(int, ftruncate64, WRITE, file, (file, size), int file, off64_t size)
ON_FILE(int, fsync, SYNC, file, (file), int file)
ON_FILE(int, fdatasync, SYNC, file, (file), int file)
ON_FILE(ssize_t, read, READ, file, (file, data, size), int file, void *data, size_t size)
ON_FILE(ssize_t, readv, READ, file, (file, parts, size), int file, const struct iovec *parts,
        int size)
ON_FILE(ssize_t, pread, READ, file, (file, data, size, start), int file, void *data, size_t size,
        off_t start)
ON_FILE(ssize_t, pread64, READ, file, (file, data, size, start), int file, void *data, size_t size,
        off64_t start)
ON_FILE(int, connect, NETWORK, file, (file, to, size), int file, const struct sockaddr *to,
        socklen_t size)
ON_FILE(ssize_t, send, NETWORK, file, (file, data, size, flags), int file, const void *data,
        size_t size, int flags)
ON_FILE(ssize_t, sendto, NETWORK, file, (file, data, size, flags, to, length), int file,
        const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
ON_FILE(ssize_t, sendmsg, NETWORK, file, (file, message, flags), int file,
        const struct msghdr *message, int flags)
ON_FILE(ssize_t, recv, NETWORK, file, (file, data, size, flags), int file, void *data, size_t size,
        int flags)
ON_FILE(ssize_t, recvfrom, NETWORK, file, (file, data, size, flags, from, length), int file,
        void *data, size_t size, int flags, struct sockaddr *from, socklen_t *length)
ON_FILE(ssize_t, recvmsg, NETWORK, file, (file, message, flags), int file, struct msghdr *message,
        int flags)
