/* The smallest guest: PID 1 that says it is there and switches the machine off. */
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(void)
{
	puts("guest is up");
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 0;
}
