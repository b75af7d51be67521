/* Tells whoever asks by TCP, UDP or, where the kernel has it, SCTP from which address.
 *
 *   who PORT [LAST]    serves these ports, of both IP versions, until it is killed
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 96

static int serve(int type, int protocol, int port)
{
	struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int fd = socket(AF_INET6, type, protocol), one = 1;

	if (fd < 0 && errno == EPROTONOSUPPORT)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) ||
	    (type == SOCK_STREAM && listen(fd, 16))) {
		perror("who");
		exit(1);
	}
	return fd;
}

static size_t name(char *text, size_t size, const struct sockaddr_in6 *from)
{
	char address[INET6_ADDRSTRLEN];
	const char *shown = inet_ntop(AF_INET6, &from->sin6_addr, address, sizeof address);

	if (!strncmp(shown, "::ffff:", 7))
		shown += 7;
	return snprintf(text, size, "%s\n", shown);
}

static void answer(int fd, int is_stream)
{
	struct sockaddr_in6 from;
	socklen_t size = sizeof from;
	char text[64];

	if (is_stream) {
		int client = accept(fd, (struct sockaddr *)&from, &size);

		if (client < 0 || write(client, text, name(text, sizeof text, &from)) < 0)
			perror("who");
		close(client);
	} else if (recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&from, &size) >= 0) {
		size_t length = name(text, sizeof text, &from);

		sendto(fd, text, length, 0, (struct sockaddr *)&from, size);
	}
}

int main(int argc, char **argv)
{
	struct pollfd fds[MOST];
	int count = 0, first = atoi(argv[1]), last = argc > 2 ? atoi(argv[2]) : first;

	for (int port = first; port <= last && count + 2 < MOST; port++) {
		fds[count++] = (struct pollfd){ serve(SOCK_DGRAM, 0, port), POLLIN, 0 };
		fds[count++] = (struct pollfd){ serve(SOCK_STREAM, 0, port), POLLIN, 0 };
		fds[count++] = (struct pollfd){ serve(SOCK_STREAM, IPPROTO_SCTP, port), POLLIN, 0 };
	}
	puts("ready");
	fflush(stdout);
	while (poll(fds, count, -1) > 0)
		for (int i = 0; i < count; i++)
			if (fds[i].revents)
				answer(fds[i].fd, i % 3);
	return 0;
}
