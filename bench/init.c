/* The smallest guest: PID 1 that says it is there and ends the machine: with -no-reboot a restart is the end, with or
 * without ACPI. Where it finds modules, it first does by hand what it takes to run a program of the image: it loads
 * them, mounts the layer and the writable disk one over the other, and runs /bin/true in there. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(int result, const char *what)
{
	if (result < 0)
		perror(what);
}

static int load_modules(void)
{
	struct dirent **entries;
	int count = scandir("/modules", &entries, NULL, alphasort), loaded = 0;
	char path[300];

	for (int i = 0; i < count; i++) {
		if (entries[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/modules/%s", entries[i]->d_name);
		int fd = open(path, O_RDONLY);
		check(syscall(SYS_finit_module, fd, "", 0), path);
		close(fd);
		loaded++;
	}
	return loaded;
}

static void run_program(void)
{
	check(mount("dev", "/dev", "devtmpfs", 0, NULL), "/dev");
	mkdir("/rw", 0755);
	mkdir("/layer", 0755);
	check(mount("/dev/vda", "/rw", "ext4", 0, NULL), "/rw");
	check(mount("/dev/vdb", "/layer", "erofs", MS_RDONLY, NULL), "/layer");
	mkdir("/rw/upper", 0755);
	mkdir("/rw/work", 0755);
	check(mount("overlay", "/newroot", "overlay", 0, "lowerdir=/layer,upperdir=/rw/upper,workdir=/rw/work"), "overlay");
	if (fork() == 0) {
		check(chroot("/newroot"), "chroot");
		execl("/bin/true", "true", NULL);
		perror("/bin/true");
		_exit(127);
	}
	wait(NULL);
}

int main(void)
{
	if (load_modules() > 0)
		run_program();
	puts("guest is up");
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	return 0;
}
