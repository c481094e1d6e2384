/* Disk faults on purpose. Loaded with LD_PRELOAD, it counts what a process changes below one folder and, at a chosen
 * operation, kills the process or lets the operation fail. It sees native writers, too: FAISS, Arrow, safetensors,
 * torch, and SQLite. It does nothing until `faults_arm` is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Kinds of operations, as bits; tests/faults/disk.py has the same. */
enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, MAKE = 16, REMOVE = 32, READ_OPEN = 64 };
/* What happens instead of an errno; below SIGNAL, that signal is sent before the operation, e.g. SIGNAL - SIGTERM. */
enum { KILL_BEFORE = -1, KILL_WITHIN = -2, SIGNAL = -100 };

static char root[PATH_MAX];
static size_t root_length;
static long first_fault, last_fault;
static int kinds, fault;
static pid_t armed;
static int log_file = -1;
static atomic_long *count; /* shared with forked processes */

/* Faults hit operations `first` to `last`, counted from 0 among those of `chosen` kinds below `folder`. With `log`, each
 * operation is a line of that file: its number, kind, and path. */
void faults_arm(const char *folder, long first, long last, int error, int chosen, const char *log) {
  if (!count)
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  atomic_store(count, 0);
  snprintf(root, sizeof root, "%s/", folder);
  root_length = strlen(root);
  first_fault = first, last_fault = last, fault = error, kinds = chosen;
  if (log && *log)
    log_file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  armed = getpid();
}

void faults_disarm(void) { armed = 0; }

/* The absolute path of a name that is relative to a directory's descriptor. */
static const char *absolute(int directory, const char *name, char *buffer) {
  char base[PATH_MAX];
  if (!name)
    return "";
  if (*name == '/')
    return name;
  if (directory == AT_FDCWD) {
    if (!getcwd(base, sizeof base))
      return "";
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0)
      return "";
    base[length] = 0;
  }
  if (strlen(base) + strlen(name) + 2 > PATH_MAX)
    return "";
  strcat(strcat(strcpy(buffer, base), "/"), name);
  return buffer;
}

static const char *of_descriptor(int descriptor, char *buffer) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, buffer, PATH_MAX - 1);
  if (length < 0)
    return "";
  buffer[length] = 0;
  return buffer;
}

static void die(void) {
  kill(armed, SIGKILL);
  kill(getpid(), SIGKILL);
  for (;;)
    pause();
}

/* Whether the operation is the one to break: an errno, KILL_WITHIN, or 0. KILL_BEFORE does not return. */
static int broken(int kind, const char *path) {
  if (!armed || !(kind & kinds) || strncmp(path, root, root_length))
    return 0;
  long number = atomic_fetch_add(count, 1);
  if (log_file >= 0) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld\t%d\t%s\n", number, kind, path + root_length);
    syscall(SYS_write, log_file, line, length);
  }
  if (!fault || number < first_fault || number > last_fault)
    return 0;
  if (fault == KILL_BEFORE)
    die();
  if (fault < SIGNAL) {
    kill(armed, SIGNAL - fault);
    return 0;
  }
  return fault;
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) \
    real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* An operation that has no half: it fails, or the process dies once it is done. */
#define WHOLE(kind, path, call) \
  do { \
    int error = broken(kind, path); \
    if (error > 0) { \
      errno = error; \
      return -1; \
    } \
    __auto_type result = call; \
    if (error == KILL_WITHIN) \
      die(); \
    return result; \
  } while (0)

static int opening(int flags) {
  return (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) ? OPEN : READ_OPEN;
}

static mode_t mode_of(int flags, va_list rest) {
  return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = mode_of(flags, rest); \
    va_end(rest); \
    WHOLE(opening(flags), absolute(AT_FDCWD, path, buffer), real(path, flags, mode)); \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = mode_of(flags, rest); \
    va_end(rest); \
    WHOLE(opening(flags), absolute(directory, path, buffer), real(directory, path, flags, mode)); \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

#define OPENS_STREAM(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    int error = broken(strpbrk(mode, "wa+") ? OPEN : READ_OPEN, absolute(AT_FDCWD, path, buffer)); \
    if (error > 0) { \
      errno = error; \
      return NULL; \
    } \
    FILE *stream = real(path, mode); \
    if (error == KILL_WITHIN) \
      die(); \
    return stream; \
  }
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)

ssize_t write(int descriptor, const void *data, size_t size) {
  REAL(write);
  char buffer[PATH_MAX];
  int error = armed ? broken(WRITE, of_descriptor(descriptor, buffer)) : 0;
  if (error > 0) {
    errno = error;
    return -1;
  }
  ssize_t result = real(descriptor, data, error ? size / 2 : size);
  if (error == KILL_WITHIN)
    die();
  return result;
}

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
  REAL(writev);
  char buffer[PATH_MAX];
  int error = armed ? broken(WRITE, of_descriptor(descriptor, buffer)) : 0;
  if (error > 0) {
    errno = error;
    return -1;
  }
  ssize_t result = real(descriptor, parts, error ? (number + 1) / 2 : number);
  if (error == KILL_WITHIN)
    die();
  return result;
}

#define WRITES_AT(name, offset_type) \
  ssize_t name(int descriptor, const void *data, size_t size, offset_type offset) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    int error = armed ? broken(WRITE, of_descriptor(descriptor, buffer)) : 0; \
    if (error > 0) { \
      errno = error; \
      return -1; \
    } \
    ssize_t result = real(descriptor, data, error ? size / 2 : size, offset); \
    if (error == KILL_WITHIN) \
      die(); \
    return result; \
  }
WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)

size_t fwrite(const void *data, size_t size, size_t number, FILE *stream) {
  REAL(fwrite);
  char buffer[PATH_MAX];
  int error = armed ? broken(WRITE, of_descriptor(fileno(stream), buffer)) : 0;
  if (error > 0) {
    errno = error;
    return 0;
  }
  size_t result = real(data, size, error ? number / 2 : number, stream);
  if (error == KILL_WITHIN) {
    fflush(stream);
    die();
  }
  return result;
}

/* What was buffered is written here, so that closing fails where the disk is full. */
int fclose(FILE *stream) {
  REAL(fclose);
  char buffer[PATH_MAX];
  int writes = armed && (fcntl(fileno(stream), F_GETFL) & O_ACCMODE) != O_RDONLY;
  int error = writes ? broken(WRITE, of_descriptor(fileno(stream), buffer)) : 0;
  if (error > 0) {
    __fpurge(stream);
    real(stream);
    errno = error;
    return EOF;
  }
  int result = real(stream);
  if (error == KILL_WITHIN)
    die();
  return result;
}

#define SYNCS(name) \
  int name(int descriptor) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    WHOLE(SYNC, armed ? of_descriptor(descriptor, buffer) : "", real(descriptor)); \
  }
SYNCS(fsync)
SYNCS(fdatasync)

#define TRUNCATES(name, length_type) \
  int name(int descriptor, length_type length) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    WHOLE(WRITE, armed ? of_descriptor(descriptor, buffer) : "", real(descriptor, length)); \
  }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
  REAL(rename);
  char buffer[PATH_MAX];
  WHOLE(RENAME, absolute(AT_FDCWD, to, buffer), real(from, to));
}

int renameat(int from_directory, const char *from, int to_directory, const char *to) {
  REAL(renameat);
  char buffer[PATH_MAX];
  WHOLE(RENAME, absolute(to_directory, to, buffer), real(from_directory, from, to_directory, to));
}

int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
  REAL(renameat2);
  char buffer[PATH_MAX];
  WHOLE(RENAME, absolute(to_directory, to, buffer), real(from_directory, from, to_directory, to, flags));
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  char buffer[PATH_MAX];
  WHOLE(MAKE, absolute(AT_FDCWD, path, buffer), real(path, mode));
}

int mkdirat(int directory, const char *path, mode_t mode) {
  REAL(mkdirat);
  char buffer[PATH_MAX];
  WHOLE(MAKE, absolute(directory, path, buffer), real(directory, path, mode));
}

int link(const char *from, const char *to) {
  REAL(link);
  char buffer[PATH_MAX];
  WHOLE(MAKE, absolute(AT_FDCWD, to, buffer), real(from, to));
}

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags) {
  REAL(linkat);
  char buffer[PATH_MAX];
  WHOLE(MAKE, absolute(to_directory, to, buffer), real(from_directory, from, to_directory, to, flags));
}

int symlink(const char *from, const char *to) {
  REAL(symlink);
  char buffer[PATH_MAX];
  WHOLE(MAKE, absolute(AT_FDCWD, to, buffer), real(from, to));
}

#define REMOVES(name) \
  int name(const char *path) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    WHOLE(REMOVE, absolute(AT_FDCWD, path, buffer), real(path)); \
  }
REMOVES(unlink)
REMOVES(rmdir)
REMOVES(remove)

int unlinkat(int directory, const char *path, int flags) {
  REAL(unlinkat);
  char buffer[PATH_MAX];
  WHOLE(REMOVE, absolute(directory, path, buffer), real(directory, path, flags));
}
