/* Makes a system call through each entrance of the kernel and prints the error: 64-bit, 32-bit (int 0x80), x32. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static long call32(long number, long b, long c, long d)
{
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(d) : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

int main(int argc, char **argv)
{
	long args[4] = {0};
	const char *entrance = argv[1];
	long number = atol(argv[2]);
	for (int i = 3; i < argc && i < 7; i++)
		args[i - 3] = strtoul(argv[i], NULL, 0);
	if (entrance[0] == 's') {
		/* socketcall: its arguments lie in memory that 32-bit code can reach. */
		unsigned *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
		low[0] = args[0];
		low[1] = args[1];
		low[2] = args[2];
		printf("%ld\n", call32(102, number, (long)low, 0));
		return 0;
	}
	if (entrance[0] == '3') {
		printf("%ld\n", call32(number, args[0], args[1], args[2]));
		return 0;
	}
	if (entrance[0] == 'x')
		number |= 0x40000000;
	long result = syscall(number, args[0], args[1], args[2], args[3]);
	printf("%ld\n", result == -1 ? -(long)errno : result >= 0 ? 0 : result);
	return 0;
}
