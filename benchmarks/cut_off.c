/* A machine without a network, for benchmarks/faults.py: preloaded into the processes of a node, it loses all that they send to or
   receive from internet sockets as soon as the file named by CUT_OFF exists. They go on otherwise, and are told nothing, as when a
   cable is pulled; connections cannot be made. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static int lost(int fd) {
    const char *file = getenv("CUT_OFF");
    int kept = errno, domain = 0;
    socklen_t size = sizeof domain;
    int is = file && !access(file, F_OK) && !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) &&
             (domain == AF_INET || domain == AF_INET6);
    errno = kept;
    return is;
}

static size_t amount(const struct iovec *parts, size_t n) {
    size_t bytes = 0;
    while (n--) bytes += parts[n].iov_len;
    return bytes;
}

static ssize_t nothing(ssize_t found) { /* what came is lost, and the end of a connection is not heard of */
    if (found >= 0) errno = EAGAIN;
    return -1;
}

#define REAL(name, type, ...)                                     \
    static type(*real)(__VA_ARGS__);                              \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t send(int fd, const void *data, size_t n, int flags) {
    REAL("send", ssize_t, int, const void *, size_t, int);
    return lost(fd) ? (ssize_t)n : real(fd, data, n, flags);
}
ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t size) {
    REAL("sendto", ssize_t, int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    return lost(fd) ? (ssize_t)n : real(fd, data, n, flags, to, size);
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL("sendmsg", ssize_t, int, const struct msghdr *, int);
    return lost(fd) ? (ssize_t)amount(message->msg_iov, message->msg_iovlen) : real(fd, message, flags);
}
ssize_t write(int fd, const void *data, size_t n) {
    REAL("write", ssize_t, int, const void *, size_t);
    return lost(fd) ? (ssize_t)n : real(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL("writev", ssize_t, int, const struct iovec *, int);
    return lost(fd) ? (ssize_t)amount(parts, n) : real(fd, parts, n);
}
ssize_t recv(int fd, void *data, size_t n, int flags) {
    REAL("recv", ssize_t, int, void *, size_t, int);
    ssize_t found = real(fd, data, n, flags);
    return lost(fd) ? nothing(found) : found;
}
ssize_t recvfrom(int fd, void *data, size_t n, int flags, struct sockaddr *from, socklen_t *size) {
    REAL("recvfrom", ssize_t, int, void *, size_t, int, struct sockaddr *, socklen_t *);
    ssize_t found = real(fd, data, n, flags, from, size);
    return lost(fd) ? nothing(found) : found;
}
ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
    REAL("recvmsg", ssize_t, int, struct msghdr *, int);
    ssize_t found = real(fd, message, flags);
    return lost(fd) ? nothing(found) : found;
}
ssize_t read(int fd, void *data, size_t n) {
    REAL("read", ssize_t, int, void *, size_t);
    ssize_t found = real(fd, data, n);
    return lost(fd) ? nothing(found) : found;
}
ssize_t readv(int fd, const struct iovec *parts, int n) {
    REAL("readv", ssize_t, int, const struct iovec *, int);
    ssize_t found = real(fd, parts, n);
    return lost(fd) ? nothing(found) : found;
}
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    REAL("connect", int, int, const struct sockaddr *, socklen_t);
    if (!lost(fd)) return real(fd, to, size);
    errno = ENETUNREACH;
    return -1;
}
