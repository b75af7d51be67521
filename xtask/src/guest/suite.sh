# PID 1 of a guest with tests, in its image: makes of the guest what a host with systemd is, as far as containers
# can tell, runs the tests of /guest/plan two at a time and tells of them on the serial port.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LC_ALL=C

# Scratch space must be no overlay: the tests' own overlays lie on it.
for place in tmp var/tmp; do
    mkdir -p "/rw/$place" "/$place"
    chmod 1777 "/rw/$place"
    # What the image has there stays to be seen: the tests themselves, where the checkout lies below it.
    for below in "/$place"/*; do
        [ -d "$below" ] || continue
        mkdir -p "/rw$below"
        mount --bind "$below" "/rw$below"
    done
    mount --rbind "/rw/$place" "/$place"
done
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/pts /dev/shm /dev/mqueue /run/lock
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
ln -sfn /proc/self/fd /dev/fd
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
echo guest >/proc/sys/kernel/hostname
ip link set lo up

# Every controller, handed down one level; tests run in a leaf, as under systemd.
groups=/sys/fs/cgroup
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 $groups
mkdir $groups/session
echo 0 >$groups/session/cgroup.procs
for controller in $(cat $groups/cgroup.controllers); do
    echo "+$controller" >$groups/cgroup.subtree_control
done

# An ordinary user whose cgroup systemd would have handed over.
user=$groups/user.slice/user-1000.slice/user@1000.service
mkdir -p $user/tests /run/user/1000
for level in user.slice user.slice/user-1000.slice; do
    for controller in cpu memory pids io cpuset; do
        echo "+$controller" >$groups/$level/cgroup.subtree_control
    done
done
chown -R 1000:1000 $user /run/user/1000 /home/user
chmod 700 /run/user/1000

exec 9>/dev/vport0p1
tell() {
    flock /run/tell.lock cat >&9
}

if [ -f /guest/policy ]; then
    mount -t selinuxfs selinuxfs /sys/fs/selinux
    dd if=/guest/policy of=/sys/fs/selinux/load bs=16M 2>/dev/null
    echo 1 >/sys/fs/selinux/enforce
fi
echo "guest $(uname -r), $(nproc) CPUs, $(cat /sys/kernel/security/lsm), $(cat $groups/cgroup.controllers)" | tell
xargs -P 2 -L 1 /bin/sh /guest/one.sh </guest/plan || true
echo "done" | tell
# The host ends us; to end before it has read all would lose the last lines.
sleep 60
