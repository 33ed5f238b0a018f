# Containers without a profile of their own, and those of type RuntimeDefault. They may do what their capabilities and
# namespaces let them, but mount nothing, and write nothing that is the whole machine's.
#include <tunables/global>

profile cri-containerd.apparmor.d flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,

  # The agent is not confined; the runtime is where its distribution confines it.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer=cri-containerd.apparmor.d,
  ptrace (trace, read, tracedby, readby) peer=cri-containerd.apparmor.d,

  deny mount,
  deny @{PROC}/* w,
  # All of it but shared memory's, which is a namespace's own.
  deny @{PROC}/sys/[^k]** wklx,
  deny @{PROC}/sys/kernel/{?,??,[^s]**,s[^h]**,sh[^m]**} wklx,
  deny @{PROC}/{sysrq-trigger,mem,kmem,kcore} rwklx,
  # All but cgroups, which are there for reading or the container's own.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
