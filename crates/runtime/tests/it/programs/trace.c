/* Tries to trace every process that it sees, and to open its descriptors, until it is killed; prints the program of each
 * that lets it, unless that is the program before: nobody reads what it prints before its end. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	static char last[PATH_MAX];

	puts("up");
	fflush(stdout);
	for (;;) {
		DIR *proc = opendir("/proc");
		struct dirent *entry;
		while ((entry = readdir(proc))) {
			int pid = atoi(entry->d_name);
			char path[64], exe[PATH_MAX];
			ssize_t length;
			if (pid < 1 || pid == getpid())
				continue;
			snprintf(path, sizeof path, "/proc/%d/fd", pid);
			DIR *fds = opendir(path);
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			int traced = ptrace(PTRACE_SEIZE, pid, 0, 0) == 0;
			if (fds || traced) {
				if ((length = readlink(path, exe, sizeof exe - 1)) > 0) {
					exe[length] = 0;
					if (strcmp(exe, last) != 0)
						printf("traced %s\n", exe);
					fflush(stdout);
					strcpy(last, exe);
				}
			}
			if (traced) {
				ptrace(PTRACE_INTERRUPT, pid, 0, 0);
				waitpid(pid, NULL, __WALL);
				ptrace(PTRACE_DETACH, pid, 0, 0);
			}
			if (fds)
				closedir(fds);
		}
		closedir(proc);
	}
}
