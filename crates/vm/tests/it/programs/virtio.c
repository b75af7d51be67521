/* A hostile driver, in user space: takes a virtio device of the guest from the kernel and tells it lies.
 *
 * virtio net|blk|console|balloon|rng: each lie begins with a device that was reset; one line a lie on standard output. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE 64
#define NEXT 1
#define WRITE 2
#define INDIRECT 4
#define LAST_PAGE 0xfffffffffffff000ull

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct ring {
    struct descriptor table[SIZE];
    struct { uint16_t flags, index, ring[SIZE]; } available;
    char gap[2048 - SIZE * 16 - 4 - SIZE * 2];
    struct { uint16_t flags, index; struct { uint32_t id, length; } ring[SIZE]; } used;
};

static volatile uint8_t *common, *notify;
static uint32_t multiplier;
static uint64_t bar; /* where the device's registers are in the guest's memory */
static struct ring *ring;
static struct descriptor *indirect;
static char *buffer;

static void die(const char *what) { perror(what); exit(3); }

static uint64_t physical(const void *place) {
    uint64_t entry = 0;
    int file = open("/proc/self/pagemap", O_RDONLY);
    if (file < 0 || pread(file, &entry, 8, (uintptr_t)place / 4096 * 8) != 8) die("pagemap");
    close(file);
    if (!(entry & ((1ull << 55) - 1))) { fputs("no frame numbers\n", stderr); exit(3); }
    return (entry & ((1ull << 55) - 1)) * 4096 + (uintptr_t)place % 4096;
}

static void *page(void) {
    void *place = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    if (place == MAP_FAILED) die("mmap");
    return memset(place, 0, 4096);
}

static void put(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    if (file < 0 || write(file, text, strlen(text)) < 0) die(path);
    close(file);
}

static unsigned get(const char *slot, const char *name) {
    char path[300];
    unsigned number = 0;
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", slot, name);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%x", &number) != 1) die(path);
    fclose(file);
    return number;
}

/* The last device of this kind takes its leave from its driver. */
static void take(unsigned kind) {
    char slot[64] = "", path[300];
    DIR *devices = opendir("/sys/bus/pci/devices");
    for (struct dirent *entry; devices && (entry = readdir(devices));)
        if (entry->d_name[0] != '.' && get(entry->d_name, "vendor") == 0x1af4 &&
            get(entry->d_name, "device") == 0x1040 + kind && strcmp(entry->d_name, slot) > 0)
            strcpy(slot, entry->d_name);
    if (!*slot) { fputs("no such device\n", stderr); exit(3); }
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/driver/unbind", slot);
    put(path, slot);
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", slot);
    uint8_t config[256];
    int file = open(path, O_RDWR);
    if (file < 0 || pread(file, config, 256, 0) != 256) die(path);
    uint16_t command = 6; /* its registers, and the memory of others */
    if (pwrite(file, &command, 2, 4) != 2) die(path);
    close(file);
    for (int at = config[0x34]; at; at = config[at + 1]) {
        if (config[at] != 9 || config[at + 3] > 2 || !config[at + 3]) continue;
        uint32_t offset, length, low, high;
        memcpy(&offset, config + at + 8, 4);
        memcpy(&length, config + at + 12, 4);
        memcpy(&low, config + 0x10 + config[at + 4] * 4, 4);
        memcpy(&high, config + 0x14 + config[at + 4] * 4, 4);
        bar = ((uint64_t)high << 32) | (low & ~15u);
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource%d", slot, config[at + 4]);
        int registers = open(path, O_RDWR | O_SYNC);
        void *place = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, registers, offset);
        if (place == MAP_FAILED) die(path);
        if (config[at + 3] == 1) common = place;
        else { notify = place; memcpy(&multiplier, config + at + 16, 4); }
    }
}

#define REGISTER(type, at) (*(volatile type *)(common + (at)))

static void reset(void) {
    REGISTER(uint8_t, 20) = 0;
    while (REGISTER(uint8_t, 20)) usleep(100);
    REGISTER(uint8_t, 20) = 3;
    for (uint32_t half = 0; half < 2; half++) {
        REGISTER(uint32_t, 0) = half;
        uint32_t offered = REGISTER(uint32_t, 4);
        REGISTER(uint32_t, 8) = half;
        REGISTER(uint32_t, 12) = half ? offered : offered & ~(1u << 29);
    }
    REGISTER(uint8_t, 20) = 11;
    memset(ring, 0, sizeof *ring);
}

static void address(int at, uint64_t value) {
    REGISTER(uint32_t, at) = value;
    REGISTER(uint32_t, at + 4) = value >> 32;
}

static void queue(uint16_t number, uint64_t table, uint64_t available, uint64_t used) {
    REGISTER(uint16_t, 22) = number;
    REGISTER(uint16_t, 24) = SIZE;
    address(32, table);
    address(40, available);
    address(48, used);
    REGISTER(uint16_t, 28) = 1;
}

static void usual(uint16_t number) {
    uint64_t at = physical(ring);
    queue(number, at, at + 1024, at + 2048);
}

static void kick(uint16_t number) {
    REGISTER(uint16_t, 22) = number;
    *(volatile uint16_t *)(notify + REGISTER(uint16_t, 30) * multiplier) = number;
    uint16_t before = ring->used.index;
    for (int i = 0; i < 20 && *(volatile uint16_t *)&ring->used.index == before; i++) usleep(500);
}

static void offer(uint16_t number, uint16_t head) {
    ring->available.ring[ring->available.index % SIZE] = head;
    __sync_synchronize();
    ring->available.index++;
    __sync_synchronize();
    kick(number);
}

static void describe(int at, uint64_t where, uint32_t length, uint16_t flags, uint16_t next) {
    ring->table[at] = (struct descriptor){where, length, flags, next};
}

static void told(const char *lie) {
    printf("%s: status %02x, used %u\n", lie, REGISTER(uint8_t, 20), ring->used.index);
    fflush(stdout);
}

/* What is wrong with the chain that begins with the first descriptor; head and place of the rings are usual. */
static void chains(uint16_t number) {
    struct { const char *name; struct descriptor chain[3]; } lies[] = {
        {"a loop", {{physical(buffer), 16, NEXT, 0}}},
        {"a next beyond the table", {{physical(buffer), 16, NEXT, 5000}}},
        {"memory that is not there", {{1ull << 52, 4096, 0, 0}}},
        {"memory that wraps around", {{LAST_PAGE, 0x2000, WRITE, 0}}},
        {"nothing", {{physical(buffer), 0, 0, 0}}},
        {"four gigabytes", {{0, 0xffffffff, WRITE, 0}}},
        {"read behind written", {{physical(buffer), 64, WRITE | NEXT, 1}, {physical(buffer), 64, 0, 0}}},
        {"its own registers to read", {{bar, 4096, 0, 0}}},
        {"its own registers to write", {{bar, 4096, WRITE, 0}}},
        {"its own registers behind a header", {{physical(buffer), 16, NEXT, 1}, {bar, 4096, WRITE | NEXT, 2}, {bar + 0x3000, 4, WRITE, 0}}},
        {"its own ring", {{physical(ring), 4096, WRITE, 0}}},
        {"indirect of an odd length", {{physical(indirect), 17, INDIRECT, 0}}},
        {"indirect and more", {{physical(indirect), 32, INDIRECT | NEXT, 1}}},
        {"indirect in indirect", {{physical(indirect), 32, INDIRECT, 0}}},
        {"indirect that is not there", {{1ull << 52, 4096, INDIRECT, 0}}},
        {"indirect registers", {{bar, 4096, INDIRECT, 0}}},
    };
    indirect[0] = (struct descriptor){physical(indirect), 32, INDIRECT, 0};
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
        reset();
        usual(number);
        REGISTER(uint8_t, 20) = 15;
        memcpy(ring->table, lies[i].chain, sizeof lies[i].chain);
        offer(number, 0);
        told(lies[i].name);
    }
}

/* Heads, indices and places of rings. */
static void rings(uint16_t number) {
    uint64_t at = physical(ring);
    for (int lie = 0; lie < 5; lie++) {
        static const char *names[] = {"a head beyond the table", "an index that jumps", "a table in the registers",
                                      "used in the registers", "rings that are not there"};
        reset();
        uint64_t table = lie == 2 ? bar : lie == 4 ? 1ull << 52 : at, used = lie == 3 ? bar : lie == 4 ? 1ull << 52 : at + 2048;
        queue(number, table, lie == 4 ? LAST_PAGE : at + 1024, used);
        REGISTER(uint8_t, 20) = 15;
        describe(0, physical(buffer), 16, WRITE, 0);
        if (lie == 1) ring->available.index = 40000;
        offer(number, lie == 0 ? 60000 : 0);
        told(names[lie]);
    }
    reset();
    usual(number);
    REGISTER(uint8_t, 20) = 15;
    describe(0, physical(buffer), 16, WRITE, 0);
    offer(number, 0);
    REGISTER(uint16_t, 24) = 0;
    kick(number);
    REGISTER(uint16_t, 24) = 32768;
    address(32, bar);
    address(48, LAST_PAGE);
    offer(number, 0);
    REGISTER(uint32_t, 12) = 0xffffffff;
    offer(number, 0);
    REGISTER(uint16_t, 22) = 65535;
    REGISTER(uint16_t, 24) = 65535;
    REGISTER(uint16_t, 28) = 1;
    kick(number);
    told("a queue that changes while it works");
    for (int i = 0; i < 2000; i++) {
        REGISTER(uint8_t, 20) = 0;
        REGISTER(uint8_t, 20) = 15;
        if (i % 50 == 0) usual(number), kick(number);
    }
    told("a storm of resets");
}

static void block(void) {
    static const uint32_t types[] = {0, 1, 2, 4, 8, 11, 13, 14, 0xffffffff};
    static const uint64_t sectors[] = {0x7fffffffffffffff, ~0ull, 1ull << 33, 1ull << 54};
    for (unsigned type = 0; type < sizeof types / sizeof *types; type++)
        for (unsigned i = 0; i < 4; i++) {
            reset();
            usual(0);
            REGISTER(uint8_t, 20) = 15;
            memcpy(buffer, &types[type], 4);
            memcpy(buffer + 8, &sectors[i], 8);
            /* For discards: a range that begins there, of all sectors there are, with flags that nobody knows. */
            memcpy(buffer + 512, &sectors[i], 8);
            memset(buffer + 520, 0xff, 8);
            uint16_t direction = type == 0 || type == 4 ? WRITE : 0;
            describe(0, physical(buffer), 16, NEXT, 1);
            describe(1, physical(buffer + 512), i == 3 ? 1000 : 512, NEXT | direction, 2);
            describe(2, physical(buffer + 2048), i == 2 ? 0 : 1, WRITE, 0);
            offer(0, 0);
            if (i == 3) describe(0, physical(buffer), 16, 0, 0), offer(0, 0);
        }
    told("requests beyond the end");
}

static void net(void) {
    static const uint8_t headers[][12] = {
        {1, 1, 0xff, 0xff, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0xff, 0, 0, 0, 0, 0, 0xff, 0, 0xff},
        {0, 4, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, {1, 3, 1, 0, 0, 0, 0xff, 0xff, 2, 0, 0xff, 0xff},
    };
    for (int i = 0; i < 4; i++)
        for (uint32_t length = 0; length < 80; length += 13) {
            reset();
            usual(1);
            REGISTER(uint8_t, 20) = 15;
            memset(buffer, 0x60 + i, 4096);
            memcpy(buffer, headers[i], 12);
            memcpy(buffer + 24, i % 2 ? "\x08\x00\x45" : "\x86\xdd\x60", 3);
            describe(0, physical(buffer), 12, NEXT, 1);
            describe(1, physical(buffer + 12), length, 0, 0);
            offer(1, 0);
        }
    told("headers that lie");
    for (int round = 0; round < 3; round++) {
        reset();
        usual(2);
        REGISTER(uint8_t, 20) = 15;
        memset(buffer, 0xff, 4096);
        buffer[0] = round; /* of what kind */
        buffer[1] = round;
        describe(0, physical(buffer), 2, NEXT, 1);
        describe(1, physical(buffer + 2), 4000, NEXT, 2);
        describe(2, physical(ring) + 3072, 1, WRITE, 0);
        offer(2, 0);
    }
    told("commands that lie");
}

static void balloon(void) {
    uint32_t *frames = (uint32_t *)buffer;
    static const uint32_t lies[] = {0xffffffff, 0xfee00, 0xb8, 0xf0, 0xfffff, 0x80000000, 1u << 20};
    for (uint16_t number = 0; number < 2; number++) {
        reset();
        usual(number);
        REGISTER(uint8_t, 20) = 15;
        for (int i = 0; i < 1024; i++) frames[i] = lies[i % 7] + i / 7 % 2;
        frames[1000] = bar / 4096;
        describe(0, physical(buffer), 4096, 0, 0);
        offer(number, 0);
        describe(0, physical(buffer), 3, 0, 0);
        offer(number, 0);
    }
    told("pages that are not there");
    /* Its last queue, where free pages are told. */
    uint64_t free[] = {bar, 1ull << 40, 0xb8000, 0xf0000, 0xfffff000, 0xfee00000, physical(page()), physical(buffer) + 8, LAST_PAGE};
    for (uint16_t number = 2; number < 5; number++)
        for (unsigned i = 0; i < sizeof free / sizeof *free; i++) {
            reset();
            usual(number);
            REGISTER(uint8_t, 20) = 15;
            describe(0, free[i], i % 2 ? 4096 : 0x200000, WRITE, 0);
            offer(number, 0);
        }
    told("free pages that are none");
}

int main(int count, char **words) {
    const char *names[] = {"net", "blk", "console", "rng", "balloon"};
    unsigned kind = 0;
    if (count != 2) return 3;
    while (kind < 5 && strcmp(names[kind], words[1])) kind++;
    ring = page();
    indirect = page();
    buffer = page();
    mlockall(MCL_CURRENT);
    /* What has not been flushed to its disk would be waited for. */
    sync();
    take(kind + 1);
    uint16_t number = kind == 0;
    chains(number);
    rings(number);
    if (kind == 0) net();
    if (kind == 1) block();
    if (kind == 4) balloon();
    REGISTER(uint8_t, 20) = 0;
    puts("done");
    return 0;
}
