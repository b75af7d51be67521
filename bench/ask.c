/* Asks a DNS server for a name so many times, and prints what came of it.
 *
 *   ask SERVER NAME COUNT          WINDOW questions on the way at once: answers a second, questions without an answer
 *   ask SERVER NAME COUNT RATE     RATE questions a second: the same, microseconds until half, 99 of 100 and all answers
 *                                  were there, and answers that came and found no room here
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#define WINDOW 32
/* Of different questions. */
#define NUMBERS 65536

static size_t question(unsigned char *packet, const char *name)
{
	static const unsigned char head[12] = { 0, 0, 1, 0, 0, 1 };
	static const unsigned char tail[5] = { 0, 0, 1, 0, 1 };
	size_t length = strlen(name);

	memcpy(packet, head, sizeof head);
	packet[12] = length;
	memcpy(packet + 13, name, length);
	memcpy(packet + 13 + length, tail, sizeof tail);
	return 13 + length + sizeof tail;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void ask(int fd, unsigned char *packet, size_t length, long number)
{
	packet[0] = number >> 8;
	packet[1] = number;
	send(fd, packet, length, 0);
}

/* The number of a question that has an answer with a record and without an error, or -1. */
static long hear(int fd, int flags)
{
	unsigned char answer[1500];

	if (recv(fd, answer, sizeof answer, flags) <= 12 || answer[3] & 15 || !answer[7])
		return -1;
	return answer[0] << 8 | answer[1];
}

static void flood(int fd, unsigned char *packet, size_t length, long count)
{
	long sent = 0, answered = 0, lost = 0;
	double begun = now();

	while (answered + lost < count) {
		for (; sent < count && sent - answered - lost < WINDOW; sent++)
			ask(fd, packet, length, sent);
		if (hear(fd, 0) >= 0)
			answered++;
		else
			lost = sent - answered;
	}
	printf("%.0f %ld\n", answered / (now() - begun), lost);
}

static int compare(const void *one, const void *other)
{
	double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

/* Answers that came while this program was not let run, and for which the socket had no room. */
static unsigned dropped(int fd)
{
	unsigned figures[SK_MEMINFO_VARS] = { 0 };
	socklen_t size = sizeof figures;

	getsockopt(fd, SOL_SOCKET, SO_MEMINFO, figures, &size);
	return figures[SK_MEMINFO_DROPS];
}

/* Questions leave when they are due; a thread that was not let run catches up. */
static void pace(int fd, unsigned char *packet, size_t length, long count, double rate)
{
	static double left[NUMBERS], taken[NUMBERS];
	long sent = 0, answered = 0;
	double begun = now(), time = begun;

	while (answered < count && time < begun + count / rate + 1) {
		long number = hear(fd, MSG_DONTWAIT);

		time = now();
		if (number >= 0 && number < sent && left[number]) {
			taken[answered++] = time - left[number];
			left[number] = 0;
		}
		if (number < 0 && sent < count && time >= begun + sent / rate) {
			left[sent] = time;
			ask(fd, packet, length, sent++);
		} else if (number < 0) {
			struct pollfd wait = { fd, POLLIN, 0 };
			struct timespec none = { 0, 20000 };

			ppoll(&wait, 1, &none, NULL);
		}
	}
	qsort(taken, answered, sizeof *taken, compare);
	printf("%.0f %ld", count / (time - begun), count - answered);
	for (int part = 0; part < 3; part++) {
		double shares[] = { 0.5, 0.99, 1 };
		long last = answered * shares[part] - 1;

		printf(" %.0f", answered ? taken[last < 0 ? 0 : last] * 1e6 : 0);
	}
	printf(" %u\n", dropped(fd));
}

int main(int argc, char **argv)
{
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(53) };
	struct timeval limit = { .tv_sec = 1 };
	unsigned char packet[300];
	long count = argc > 3 ? atol(argv[3]) : 0;
	int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 1 << 20;

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
	if (argc < 4 || count > NUMBERS || strlen(argv[2]) > 63 ||
	    inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 ||
	    connect(fd, (struct sockaddr *)&server, sizeof server) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit))
		return 1;
	if (argc > 4)
		pace(fd, packet, question(packet, argv[2]), count, atof(argv[4]));
	else
		flood(fd, packet, question(packet, argv[2]), count);
	return 0;
}
