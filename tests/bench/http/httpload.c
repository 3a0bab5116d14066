/* httpload: closed-loop clients of HTTP/1.1 over a UNIX socket, and a service that takes bodies.
 *
 *   httpload keep  PATH K N      N small GETs over K connections that stay open
 *   httpload fresh PATH K N      N small GETs, K at a time, each on a connection of its own
 *   httpload post  PATH MIB      one POST with a body of MIB mebibytes, by Content-Length
 *   httpload take  PATH          service: reads each request with its body, answers 200
 *
 * A client prints one number (requests or mebibytes a second) and exits 0; any answer but a whole 200 is a failure.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 16384, BULK = 1 << 18, CONNECTIONS = 1024 };

static const char GET[] = "GET /small HTTP/1.1\r\nHost: bench\r\nUser-Agent: httpload\r\nAccept: */*\r\n\r\n";
static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

struct conn {
    int fd;
    size_t have;   /* bytes of the message that is being read */
    size_t body;   /* bytes of its body that are still to come */
    int in_body;
    char head[BUFFER];
};

static void fail(const char *what) {
    if (errno) perror(what);
    else fprintf(stderr, "%s\n", what);
    exit(1);
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct sockaddr_un place(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    errno = 0;
    if (strlen(path) >= sizeof a.sun_path) fail("path too long");
    strcpy(a.sun_path, path);
    return a;
}

static int call(const char *path) {
    struct sockaddr_un a = place(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    while (connect(fd, (struct sockaddr *)&a, sizeof a)) {
        if (errno != EAGAIN) fail("connect");  /* EAGAIN: the backlog is full, unix(7) */
        usleep(50);
    }
    return fd;
}

static void put(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0) fail("send");
        data += n;
        size -= n;
    }
}

/* Read once. 1: a whole message has come; 0: more is to come; -1: end of the connection between messages. */
static int get(struct conn *c, const char *starts) {
    char *end;
    if (!c->in_body) {
        ssize_t n = recv(c->fd, c->head + c->have, sizeof c->head - 1 - c->have, 0);
        if (n < 0) fail("recv");
        errno = 0;
        if (n == 0 && c->have == 0) return -1;
        if (n == 0) fail("cut short");
        c->have += n;
        c->head[c->have] = 0;
        if (!(end = strstr(c->head, "\r\n\r\n"))) {
            if (c->have == sizeof c->head - 1) fail("a head that is too long");
            return 0;
        }
        if (strncmp(c->head, starts, strlen(starts))) fail(c->head);
        char *length = strcasestr(c->head, "\r\ncontent-length:");
        size_t whole = length && length < end ? strtoull(length + 17, NULL, 10) : 0;
        size_t got = c->have - (end + 4 - c->head);
        if (got > whole) fail("more than one message");
        c->body = whole - got;
        c->in_body = 1;
    } else {
        static char away[BULK];
        ssize_t n = recv(c->fd, away, c->body < sizeof away ? c->body : sizeof away, 0);
        errno = n < 0 ? errno : 0;
        if (n <= 0) fail("recv of a body");
        c->body -= n;
    }
    if (c->body) return 0;
    c->have = c->in_body = 0;
    return 1;
}

static void watch(int epoll, struct conn *c) {
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e)) fail("epoll_ctl");
}

static void ask(const char *path, int k, long n, int fresh) {
    struct conn *all = calloc(k, sizeof *all);
    struct epoll_event ready[64];
    int epoll = epoll_create1(0);
    long sent = 0, done = 0;
    double start = seconds();
    for (int i = 0; i < k && sent < n; i++, sent++) {
        all[i].fd = call(path);
        watch(epoll, &all[i]);
        put(all[i].fd, GET, sizeof GET - 1);
    }
    while (done < n) {
        int count = epoll_wait(epoll, ready, 64, 30000);
        errno = 0;
        if (count <= 0) fail("no answer in 30 seconds");
        for (int i = 0; i < count; i++) {
            struct conn *c = ready[i].data.ptr;
            int whole = get(c, "HTTP/1.1 200");
            if (whole < 0) fail("closed without an answer");
            if (!whole) continue;
            done++;
            if (fresh) close(c->fd);
            if (sent == n) continue;
            if (fresh) {
                c->fd = call(path);
                watch(epoll, c);
            }
            put(c->fd, GET, sizeof GET - 1);
            sent++;
        }
    }
    printf("%.0f\n", n / (seconds() - start));
}

static void post(const char *path, long mib) {
    static char bulk[BULK];
    static struct conn c;
    char head[200];
    double start = seconds();
    c.fd = call(path);
    put(c.fd, head, sprintf(head, "POST /body HTTP/1.1\r\nHost: bench\r\nContent-Length: %ld\r\n\r\n", mib << 20));
    for (long left = mib << 20; left; left -= BULK) put(c.fd, bulk, BULK);
    int whole;
    while (!(whole = get(&c, "HTTP/1.1 200"))) continue;
    errno = 0;
    if (whole < 0) fail("closed without an answer");
    printf("%.1f\n", mib / (seconds() - start));
}

static void take(const char *path) {
    struct sockaddr_un a = place(path);
    struct epoll_event ready[64];
    static struct conn all[CONNECTIONS];
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), epoll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 4096)) fail("bind");
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int count = epoll_wait(epoll, ready, 64, -1);
        for (int i = 0; i < count; i++) {
            struct conn *c = ready[i].data.ptr;
            if (!c) {
                int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                if (fd < 0 || fd >= CONNECTIONS) fail("accept");
                c = &all[fd];
                memset(c, 0, sizeof *c);
                c->fd = fd;
                watch(epoll, c);
                continue;
            }
            int whole = get(c, "");
            if (whole < 0) close(c->fd);
            else if (whole) put(c->fd, ANSWER, sizeof ANSWER - 1);
        }
    }
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc == 5 && !strcmp(argv[1], "keep")) ask(argv[2], atoi(argv[3]), atol(argv[4]), 0);
    else if (argc == 5 && !strcmp(argv[1], "fresh")) ask(argv[2], atoi(argv[3]), atol(argv[4]), 1);
    else if (argc == 4 && !strcmp(argv[1], "post")) post(argv[2], atol(argv[3]));
    else if (argc == 3 && !strcmp(argv[1], "take")) take(argv[2]);
    else {
        fprintf(stderr, "usage: httpload keep|fresh PATH K N | post PATH MIB | take PATH\n");
        return 2;
    }
    return 0;
}
