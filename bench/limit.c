/* The physical limit of starting a container: what no runtime can leave out.
 *   limit LOWER UPPER WORK MERGED PROGRAM [ARG...]
 * makes the same namespaces as a container (mount, pid, network, ipc, uts, cgroup), the same overlay, /proc,
 * /sys and /dev, pivots into it and executes the program. No cgroup, no filter, no log, no error messages but one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
		_exit(125);
	}
}

static void device(const char *path, int minor)
{
	check(mknod(path, S_IFCHR | 0666, makedev(1, minor)), path);
}

int main(int argc, char **argv)
{
	char options[4096];
	int flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
	long child;
	int status;

	if (argc < 6)
		return 125;
	child = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
	check(child, "clone");
	if (child) {
		check(waitpid(child, &status, 0), "waitpid");
		return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", argv[1], argv[2], argv[3]);
	check(mount("overlay", argv[4], "overlay", 0, options), "overlay");
	check(chdir(argv[4]), "chdir");
	mkdir("proc", 0755);
	mkdir("sys", 0755);
	mkdir("dev", 0755);
	check(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
	check(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, NULL), "sys");
	check(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755"), "dev");
	device("dev/null", 3);
	device("dev/zero", 5);
	device("dev/full", 7);
	device("dev/random", 8);
	device("dev/urandom", 9);
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	check(umount2(".", MNT_DETACH), "umount");
	check(chdir("/"), "chdir /");
	execv(argv[5], argv + 5);
	check(-1, argv[5]);
	return 125;
}
