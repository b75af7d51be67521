#!/busybox sh
# PID 1 of a guest with tests, in the initramfs: loads the modules, lays the writable disk over the image and
# hands over to the image's suite.sh. Whatever fails ends the guest: the kernel panics when its init ends.
set -e
/busybox mkdir -p /dev /proc /sys /image /rw /newroot
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    /busybox insmod "$module"
done
# disk SERIAL: its device.
disk() {
    for block in /sys/block/vd*; do
        if [ "$(/busybox cat "$block/serial")" = "$1" ]; then
            echo "/dev/${block##*/}"
        fi
    done
}
/busybox mount -t erofs -o ro "$(disk layer0)" /image
/busybox mount -t ext4 -o noatime,barrier=0 "$(disk rw)" /rw
/busybox mkdir -p /rw/upper /rw/work
/busybox mount -t overlay -o lowerdir=/image,upperdir=/rw/upper,workdir=/rw/work overlay /newroot
for part in rw dev proc sys; do
    /busybox mkdir -p "/newroot/$part"
    /busybox mount -o move "/$part" "/newroot/$part"
done
exec /busybox switch_root /newroot /bin/sh /guest/suite.sh
