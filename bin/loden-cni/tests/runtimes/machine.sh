# A machine of its own around a program: namespaces for mounts, processes, network, control groups, names and IPC. Everything that the
# program starts ends with it, every file it makes outside of /tmp and /root goes with it, and nothing of the real machine changes.
# Called twice: as `machine` in a mount namespace of its own, as `inside` in all of them. $SCRIPT is this text.
set -e
case $0 in
machine)
    # A group of one hierarchy, whatever the machine itself mounts: runc makes the containers' groups below it.
    mount -t cgroup2 none /sys/fs/cgroup
    group=/sys/fs/cgroup/loden-runtimes-$$
    mkdir "$group"
    code=0
    (
        echo 0 >"$group/cgroup.procs"
        exec setpriv --pdeathsig KILL unshare --cgroup --net --pid --uts --ipc --fork --kill-child --mount-proc \
            sh -c "$SCRIPT" inside "$@"
    ) || code=$?
    find "$group" -depth -type d -exec rmdir {} +
    exit $code
    ;;
inside)
    umount /sys/fs/cgroup
    mount -t sysfs none /sys
    mount -t cgroup2 none /sys/fs/cgroup
    # A group that has processes of its own gives its children no controllers.
    mkdir /sys/fs/cgroup/test
    echo 0 >/sys/fs/cgroup/test/cgroup.procs
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/lock /run/home /run/tmp /run/below
    # The files of the real machine, to be written over at will.
    for folder in etc opt var/lib var/tmp; do
        mkdir -p "/run/below/$folder/upper" "/run/below/$folder/work"
        mount -t overlay -o "lowerdir=/$folder,upperdir=/run/below/$folder/upper,workdir=/run/below/$folder/work" overlay "/$folder"
    done
    ip link set lo up
    # As process 1 this shell takes in what daemons leave behind; so it must stay, and not become the program.
    "$@"
    exit $?
    ;;
esac
