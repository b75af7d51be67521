# A system with systemd as its first process, in namespaces of its own, over the host's files, which stay as they are.
# Arguments: a directory for what it writes; v1 or v2; directories of the host that it is to have, too.
set -eu
scratch=$1 layout=$2
shift 2
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
root=$scratch/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
for place in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
for node in null zero full random urandom tty loop-control loop0 loop1 loop2 loop3; do
    [ -e "/dev/$node" ] || continue
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
if [ "$layout" = v2 ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    for dir in /sys/fs/cgroup/*/; do
        name=$(basename "$dir")
        [ -e "$dir/cgroup.procs" ] || continue
        mkdir -p "$root/sys/fs/cgroup/$name"
        case $name in
        unified) mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/$name" ;;
        systemd) mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/$name" ;;
        *) mount -t cgroup -o "$name" cgroup "$root/sys/fs/cgroup/$name" ;;
        esac
    done
fi
for shared; do
    mkdir -p "$root$shared"
    mount --bind "$shared" "$root$shared"
done
cat >"$root/etc/systemd/system/proa-test.target" <<'EOF'
[Unit]
Requires=dbus.socket dbus.service
After=dbus.socket dbus.service
DefaultDependencies=no
EOF
cd "$root"
mkdir -p old-root
pivot_root . old-root
umount -l /old-root
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
    --unit=proa-test.target --log-target=null
