/* Connects to an abstract unix socket and prints the error; 0 if it is connected. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = strlen(argv[1]);
	memcpy(address.sun_path + 1, argv[1], length);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	socklen_t size = offsetof(struct sockaddr_un, sun_path) + 1 + length;
	printf("%d\n", connect(fd, (struct sockaddr *)&address, size) ? errno : 0);
	return 0;
}
