/* A guest's agent that lies to the monitor: how, is the number behind `proa.lie=` on the kernel's command line. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST = 1, RESPONSE = 2, STDOUT = 4, CREDIT = 7, CLOSE = 8 };

struct header { uint32_t length, channel; uint8_t kind, zero[3]; };

static int port = -1;

static void send_bytes(const void *bytes, size_t length) {
    for (ssize_t count; length; bytes = (const char *)bytes + count, length -= count)
        if ((count = write(port, bytes, length)) <= 0) exit(1);
}

static void say(uint32_t channel, uint8_t kind, const void *payload, size_t length) {
    struct header header = {length, channel, kind, {0}};
    send_bytes(&header, sizeof header);
    send_bytes(payload, length);
}

static void answer(uint32_t channel, const char *json) { say(channel, RESPONSE, json, strlen(json)); }

static void load_modules(void) {
    struct dirent **found;
    int count = scandir("/modules", &found, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", found[i]->d_name);
        int file = open(path, O_RDONLY);
        syscall(SYS_finit_module, file, "", 0);
        close(file);
    }
}

static int open_port(void) {
    char path[300], name[32];
    for (;; usleep(1000)) {
        DIR *ports = opendir("/sys/class/virtio-ports");
        for (struct dirent *entry; ports && (entry = readdir(ports));) {
            snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
            FILE *file = fopen(path, "r");
            if (!file) continue;
            int is_it = fscanf(file, "%31s", name) == 1 && !strcmp(name, "proa");
            fclose(file);
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            int opened = is_it ? open(path, O_RDWR) : -1;
            if (opened >= 0) return opened;
        }
        if (ports) closedir(ports);
    }
}

/* The next frame's channel; its payload as a text. */
static uint32_t hear(char *text, size_t size) {
    struct header header;
    for (size_t got = 0; got < sizeof header;) {
        ssize_t count = read(port, (char *)&header + got, sizeof header - got);
        if (count > 0) got += count; else usleep(1000);
    }
    memset(text, 0, size);
    for (size_t got = 0; got < header.length;) {
        char byte;
        if (read(port, &byte, 1) != 1) continue;
        if (got < size - 1) text[got] = byte;
        got++;
    }
    return header.channel;
}

static void flood(void) {
    static char text[4096], output[60000];
    uint32_t attached = 0;
    memset(output, 'y', sizeof output);
    for (;;) {
        uint32_t channel = hear(text, sizeof text);
        if (strstr(text, "\"attach\"")) attached = channel;
        int starts = strstr(text, "\"start\"") != NULL;
        answer(channel, starts ? "{\"answer\":\"started\",\"pid\":1}" : "{\"answer\":\"ok\"}");
        while (starts) say(attached, STDOUT, output, sizeof output);
    }
}

int main(void) {
    static char text[1 << 16];
    int lie = 0;
    mkdir("/sys", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    load_modules();
    FILE *line = fopen("/proc/cmdline", "r");
    if (line && fgets(text, sizeof text, line) && strstr(text, "proa.lie="))
        lie = atoi(strstr(text, "proa.lie=") + 9);
    port = open_port();
    if (lie == 6) flood();
    hear(text, sizeof text);
    struct header endless = {0xffffffff, 0, RESPONSE, {0}}, unknown = {4, 0, 99, {0}};
    uint32_t credit = 0xffffffff;
    switch (lie) {
    case 1: send_bytes(&endless, sizeof endless); break;
    case 2: send_bytes(&unknown, sizeof unknown); break;
    case 3: say(0, REQUEST, "{\"request\":\"shutdown\"}", 22); break;
    case 4:
        strcpy(text, "{\"answer\":\"error\",\"kind\":\"internal\",\"message\":\"\\u001b[2J\\u001b]0;owned\\u0007\\nproa: all is well");
        for (int i = 0; i < 1000; i++) strcat(text, " \\u0000\\u009b1m");
        strcat(text, "\"}");
        answer(0, text);
        break;
    case 5:
        for (uint32_t channel = 1; channel < 5000; channel++) {
            say(channel, STDOUT, "lies", 4);
            say(channel * 77, CREDIT, &credit, 4);
            say(channel, CLOSE, "", 0);
            answer(channel, "{\"answer\":\"exited\",\"code\":0}");
            answer(0xffffffff, "{\"answer\":\"happened\",\"what\":\"exec_ended\",\"channel\":1,\"pid\":1,\"code\":0}");
            answer(channel, "{\"answer\":\"stat\",\"name\":\"../../../etc/shadow\"}");
        }
        break;
    }
    usleep(500000);
    return 0; /* which is the kernel's end as well */
}
