#!/busybox sh
# The guest's first process: makes a small system, has every test of /tests/list run, and reboots, which ends the
# emulator. Its own troubles go to the console.

/busybox mkdir -p /applets /proc /sys /dev /run /tmp /var /sbin /etc
/busybox --install -s /applets
export PATH=/programs:/applets
# Where the kernel looks for it.
ln -s /applets/modprobe /sbin/modprobe
ln -s /run /var/run

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up

# How many times longer than usual tests wait for what should happen at once.
export HAWSER_TEST_PATIENCE=10
xargs -n 2 -P "$(nproc)" sh /run-test </tests/list
echo done >/dev/ttyS1
reboot -f
