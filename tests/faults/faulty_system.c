// Injects faults of storage and of the clock into a program: preloaded (LD_PRELOAD), it stands
// between the program and the C library. `control.py` maps the same file and turns faults on and
// off while the program runs.
//
//   FAULTS_CONTROL  the mapped file
//   FAULTS_PATHS    absolute paths of the areas, in order, separated by colons
//
// Python, TensorStore, Orbax and XLA write with the functions below. What stdio writes within the C
// library (TensorFlow's own files) does not pass here, except when a file is opened.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define AREAS 3
#define FDS 65536

struct area {
  int32_t write_error;   // errno of whatever writes; 0 for none
  int32_t read_error;    // errno of whatever opens to read, or reads
  int32_t delay_ms;      // before every call
  int32_t stall_writes;  // whether writing waits until this is 0
  int32_t stall_reads;
};
struct control {
  struct area areas[AREAS];
  int32_t pace_ms;   // for the driver
  int64_t clock_s;   // added to the wall clock
  int64_t progress;  // of the driver
};

static volatile struct control *control;
static char paths[AREAS][1024];
static unsigned char area_of_fd[FDS];  // 0: none, else the area + 1

#define REAL(type, name, ...)                                        \
  static type (*real_##name)(__VA_ARGS__);                           \
  if (!real_##name) real_##name = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void open_control(void) {
  const char *file = getenv("FAULTS_CONTROL"), *list = getenv("FAULTS_PATHS");
  if (!file || !list) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // It ends with the campaign, in whatever way that ends.
  for (int index = 0; index < AREAS && *list; index++) {
    size_t length = strcspn(list, ":");
    if (length < sizeof paths[0]) memcpy(paths[index], list, length);
    list += length + (list[length] == ':');
  }
  REAL(int, open, const char *, int, ...);
  int fd = real_open(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  void *mapped = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, fd, 0);
  REAL(int, close, int);
  real_close(fd);
  if (mapped != MAP_FAILED) control = mapped;
}

static int area_of_path(const char *path) {
  if (!control || !path) return 0;
  for (int index = 0; index < AREAS; index++) {
    size_t length = strlen(paths[index]);
    if (length && !strncmp(path, paths[index], length) && (path[length] == '/' || !path[length]))
      return index + 1;
  }
  return 0;
}

static int area_at(int directory, const char *path) {
  if (path && path[0] == '/') return area_of_path(path);
  return control && directory >= 0 && directory < FDS ? area_of_fd[directory] : 0;
}

static int area_of(int fd) { return control && fd >= 0 && fd < FDS ? area_of_fd[fd] : 0; }

static void pause_ms(int milliseconds) {
  struct timespec rest = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
  nanosleep(&rest, NULL);
}

// Returns whether a call fails, with errno set.
static int fails(int area, int writes) {
  if (!area) return 0;
  volatile struct area *faults = &control->areas[area - 1];
  if (faults->delay_ms) pause_ms(faults->delay_ms);
  while (writes ? faults->stall_writes : faults->stall_reads) pause_ms(10);
  int error = writes ? faults->write_error : faults->read_error;
  if (error) errno = error;
  return error != 0;
}

// A full disk still has room for names: it makes empty files and directories, renames and removes.
static int cannot_change(int area) {
  if (area && control->areas[area - 1].write_error == ENOSPC) return 0;
  return fails(area, 1);
}

// A disk that becomes full takes a part of what is written before it refuses the rest.
static size_t accepted(int area, size_t size) {
  static __thread int refused;
  if (!area || control->areas[area - 1].write_error != ENOSPC || size < 2) return 0;
  refused = !refused;
  return refused ? size / 2 : 0;
}

static int opened(int area, int fd) {
  if (fd >= 0 && fd < FDS) area_of_fd[fd] = area;
  return fd;
}

static int is_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define OPEN(name)                                                          \
  int name(const char *path, int flags, ...) {                              \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                           \
    REAL(int, name, const char *, int, ...);                                \
    int area = area_of_path(path);                                          \
    if (is_writing(flags) ? cannot_change(area) : fails(area, 0)) return -1; \
    return opened(area, real_##name(path, flags, mode));                    \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                        \
  int name(int directory, const char *path, int flags, ...) {               \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                           \
    REAL(int, name, int, const char *, int, ...);                           \
    int area = area_at(directory, path);                                    \
    if (is_writing(flags) ? cannot_change(area) : fails(area, 0)) return -1; \
    return opened(area, real_##name(directory, path, flags, mode));         \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                 \
  FILE *name(const char *path, const char *mode) {                  \
    REAL(FILE *, name, const char *, const char *);                 \
    if (fails(area_of_path(path), mode[0] != 'r')) return NULL;     \
    return real_##name(path, mode);                                 \
  }
FOPEN(fopen)
FOPEN(fopen64)

int close(int fd) {
  REAL(int, close, int);
  if (fd >= 0 && fd < FDS) area_of_fd[fd] = 0;
  return real_close(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  int area = area_of(fd);
  size_t part = accepted(area, size);
  if (part) return real_write(fd, data, part);
  if (fails(area, 1)) return -1;
  return real_write(fd, data, size);
}

#define PWRITE(name, offset_type)                                        \
  ssize_t name(int fd, const void *data, size_t size, offset_type at) {  \
    REAL(ssize_t, name, int, const void *, size_t, offset_type);         \
    int area = area_of(fd);                                              \
    size_t part = accepted(area, size);                                  \
    if (part) return real_##name(fd, data, part, at);                    \
    if (fails(area, 1)) return -1;                                       \
    return real_##name(fd, data, size, at);                              \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

// Functions whose first argument is a descriptor or a path, and which write or read.
#define CALL(type, name, area, writes, failure, parameters, arguments) \
  type name parameters {                                               \
    static type(*real) parameters;                                     \
    if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);     \
    if (fails(area, writes)) return failure;                           \
    return real arguments;                                             \
  }
CALL(ssize_t, writev, area_of(fd), 1, -1, (int fd, const struct iovec *v, int n), (fd, v, n))
CALL(ssize_t, pwritev, area_of(fd), 1, -1, (int fd, const struct iovec *v, int n, off_t at),
     (fd, v, n, at))
CALL(int, fsync, area_of(fd), 1, -1, (int fd), (fd))
CALL(int, fdatasync, area_of(fd), 1, -1, (int fd), (fd))
CALL(int, ftruncate, area_of(fd), 1, -1, (int fd, off_t size), (fd, size))
CALL(int, ftruncate64, area_of(fd), 1, -1, (int fd, off64_t size), (fd, size))
CALL(ssize_t, read, area_of(fd), 0, -1, (int fd, void *data, size_t size), (fd, data, size))
CALL(ssize_t, pread, area_of(fd), 0, -1, (int fd, void *data, size_t size, off_t at),
     (fd, data, size, at))
CALL(ssize_t, pread64, area_of(fd), 0, -1, (int fd, void *data, size_t size, off64_t at),
     (fd, data, size, at))

#define CHANGE(name, area, parameters, arguments)                    \
  int name parameters {                                              \
    static int(*real) parameters;                                    \
    if (!real) real = (int (*) parameters)dlsym(RTLD_NEXT, #name);   \
    if (cannot_change(area)) return -1;                              \
    return real arguments;                                           \
  }
CHANGE(rename, area_of_path(to), (const char *from, const char *to), (from, to))
CHANGE(renameat, area_at(there, to), (int here, const char *from, int there, const char *to),
       (here, from, there, to))
CHANGE(mkdir, area_of_path(path), (const char *path, mode_t mode), (path, mode))
CHANGE(mkdirat, area_at(at, path), (int at, const char *path, mode_t mode), (at, path, mode))
CHANGE(unlink, area_of_path(path), (const char *path), (path))
CHANGE(unlinkat, area_at(at, path), (int at, const char *path, int flags), (at, path, flags))
CHANGE(rmdir, area_of_path(path), (const char *path), (path))

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(int, clock_gettime, clockid_t, struct timespec *);
  int result = real_clock_gettime(clock, now);
  if (control && clock == CLOCK_REALTIME) {
    now->tv_sec += control->clock_s;
  }
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  (void)zone;
  return 0;
}

time_t time(time_t *result) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (result) *result = precise.tv_sec;
  return precise.tv_sec;
}
