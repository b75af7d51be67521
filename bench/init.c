/* The smallest guest: PID 1 that says it is there and ends the machine: with -no-reboot a restart is the end, with or
 * without ACPI. */
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(void)
{
	puts("guest is up");
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	return 0;
}
