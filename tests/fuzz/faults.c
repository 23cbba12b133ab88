/* Preloaded into a Python process: counts the operations that change files below one directory, and
 * kills the process at one of them, or lets it fail. Sees what Rust and C do as well as Python. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char watched[PATH_MAX];
static long at, seen;
static int fault; /* 0: kill; else errno */

/* Directory to watch; at which operation (0: never); what happens there. */
void faults_arm(const char *directory, long operation, int what) {
    snprintf(watched, sizeof watched, "%s", directory);
    at = operation, fault = what, seen = 0;
}

long faults_seen(void) { return seen; }

static int is_below(const char *path) {
    char whole[2 * PATH_MAX];
    if (!watched[0] || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, PATH_MAX)) return 0;
        size_t used = strlen(whole);
        snprintf(whole + used, sizeof whole - used, "/%s", path);
        path = whole;
    }
    size_t length = strlen(watched);
    return !strncmp(path, watched, length) && (path[length] == '/' || !path[length]);
}

static int is_open_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!watched[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* A full disk stays full, but still lets files go. Other faults happen once. */
static int fails(int takes_room) {
    seen++;
    if (!at) return 0;
    if (seen == at && !fault) kill(getpid(), SIGKILL), pause();
    if (fault == ENOSPC ? seen >= at && takes_room : seen == at) {
        errno = fault;
        return 1;
    }
    return 0;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CHANGES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if ((flags & CHANGES) && is_below(path) && fails(flags & O_CREAT)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if ((flags & CHANGES) && is_below(path) && fails(flags & O_CREAT)) return -1; \
        return real(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    return mode[0] != 'r' && is_below(path) && fails(1) ? NULL : real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    return mode[0] != 'r' && is_below(path) && fails(1) ? NULL : real(path, mode);
}

#define ON_FD(type, name, room, parameters, arguments) \
    type name parameters { \
        REAL(name); \
        return is_open_below(fd) && fails(room) ? -1 : real arguments; \
    }
ON_FD(ssize_t, write, 1, (int fd, const void *from, size_t count), (fd, from, count))
ON_FD(ssize_t, writev, 1, (int fd, const struct iovec *from, int count), (fd, from, count))
ON_FD(ssize_t, pwrite64, 1, (int fd, const void *from, size_t n, off64_t to), (fd, from, n, to))
ON_FD(ssize_t, sendfile, 1, (int fd, int in, off_t *from, size_t count), (fd, in, from, count))
ON_FD(ssize_t, sendfile64, 1, (int fd, int in, off64_t *from, size_t count), (fd, in, from, count))
ON_FD(int, ftruncate, 1, (int fd, off_t length), (fd, length))
ON_FD(int, ftruncate64, 1, (int fd, off64_t length), (fd, length))
ON_FD(int, fsync, 1, (int fd), (fd))
ON_FD(int, fchmod, 0, (int fd, mode_t mode), (fd, mode))

#define ON_PATH(name, room, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        return is_below(path) && fails(room) ? -1 : real arguments; \
    }
ON_PATH(rename, 0, (const char *path, const char *to), (path, to))
ON_PATH(link, 1, (const char *path, const char *to), (path, to))
ON_PATH(unlink, 0, (const char *path), (path))
ON_PATH(rmdir, 0, (const char *path), (path))
ON_PATH(mkdir, 1, (const char *path, mode_t mode), (path, mode))
ON_PATH(chmod, 0, (const char *path, mode_t mode), (path, mode))
