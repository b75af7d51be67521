/* Asks a DNS server for a name so many times, WINDOW questions on the way at once, and prints questions a second.
 *
 *   ask SERVER NAME COUNT
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#define WINDOW 32

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

int main(int argc, char **argv)
{
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(53) };
	struct timeval limit = { .tv_sec = 1 };
	struct timespec begun, ended;
	unsigned char packet[300], answer[1500];
	long count = argc > 3 ? atol(argv[3]) : 0, sent = 0, answered = 0, lost = 0;
	size_t length;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (argc < 4 || strlen(argv[2]) > 63 || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 ||
	    connect(fd, (struct sockaddr *)&server, sizeof server) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit))
		return 1;
	length = question(packet, argv[2]);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	while (answered + lost < count) {
		for (; sent < count && sent - answered - lost < WINDOW; sent++) {
			packet[0] = sent >> 8;
			packet[1] = sent;
			send(fd, packet, length, 0);
		}
		/* An answer with a record, and without an error. */
		if (recv(fd, answer, sizeof answer, 0) > 12 && !(answer[3] & 15) && answer[7])
			answered++;
		else
			lost = sent - answered;
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%.0f %ld\n", answered / (ended.tv_sec - begun.tv_sec + (ended.tv_nsec - begun.tv_nsec) / 1e9), lost);
	return 0;
}
