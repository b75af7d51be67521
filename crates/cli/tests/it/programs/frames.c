/* Sends frames byte for byte, and tells of those that arrive.
 *
 *   frames send HEX...    sends each of them by eth0
 *   frames hear           prints each frame that arrives at eth0 in hexadecimal, until it is killed
 */
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#define ETH_P_ALL 0x0003

static int open_eth0(void)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

	at.sll_ifindex = if_nametoindex("eth0");
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at)) {
		perror("frames");
		exit(1);
	}
	return fd;
}

static void send_hex(int fd, const char *hex)
{
	unsigned char frame[2048];
	size_t length = 0;
	unsigned byte;

	for (; length < sizeof frame && sscanf(hex + 2 * length, "%2x", &byte) == 1; length++)
		frame[length] = byte;
	if (send(fd, frame, length, 0) != (ssize_t)length) {
		perror("frames: send");
		exit(1);
	}
}

static void hear(int fd)
{
	unsigned char frame[2048];
	struct sockaddr_ll from;

	for (;;) {
		socklen_t size = sizeof from;
		ssize_t length = recvfrom(fd, frame, sizeof frame, 0, (struct sockaddr *)&from, &size);

		if (length < 0 || from.sll_pkttype == PACKET_OUTGOING)
			continue;
		for (ssize_t i = 0; i < length; i++)
			printf("%02x", frame[i]);
		putchar('\n');
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	int fd = open_eth0();

	if (argc > 1 && !strcmp(argv[1], "hear"))
		hear(fd);
	for (int i = 2; i < argc; i++)
		send_hex(fd, argv[i]);
	return 0;
}
