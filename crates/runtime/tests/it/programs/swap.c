/* Exchanges the first name with each of the others in turn, until it is killed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	for (;;)
		for (int other = 2; other < argc; other++)
			for (int twice = 0; twice < 2; twice++)
				renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[other], RENAME_EXCHANGE);
}
