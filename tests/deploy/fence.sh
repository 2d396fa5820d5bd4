# Runs a program under the restrictions of deploy's units, as far as namespaces give them without systemd:
#   unshare --mount --propagation private sh fence.sh ROOM UID 'SHOWN...' 'WRITABLE...' PROGRAM...
# ROOM becomes the root, read-only but for WRITABLE. SHOWN are folders of this machine that it has too,
# read-only, as HERE=THERE.
set -eu
room=$1 uid=$2 shown=$3 writable=$4
shift 4
if [ "${room%/}" = "" ] || [ "$(readlink /proc/self/ns/mnt)" = "$(readlink /proc/$PPID/ns/mnt)" ]; then
  echo 'fence.sh: needs a room, and a mount namespace of its own' >&2
  exit 2
fi

# ProtectSystem=strict
mount --bind "$room" "$room"
for folder in $shown; do
  mount --bind "${folder%%=*}" "$room${folder#*=}"
  mount -o remount,bind,ro "$room${folder#*=}"
done
for folder in $writable; do mount --bind "$room$folder" "$room$folder"; done
mount -o remount,bind,ro "$room"

# PrivateTmp=yes
for folder in tmp var/tmp; do mount -t tmpfs -o mode=1777,nosuid,nodev none "$room/$folder"; done

# PrivateDevices=yes: a /dev of its own. Nothing here touches the machine's.
mount -t tmpfs -o mode=755,nosuid,noexec none "$room/dev"
mknod -m 666 "$room/dev/null" c 1 3
mknod -m 666 "$room/dev/zero" c 1 5
mknod -m 666 "$room/dev/random" c 1 8
mknod -m 666 "$room/dev/urandom" c 1 9

# ProtectProc=invisible
mount -t proc -o hidepid=invisible none "$room/proc"

# LimitCORE=0, UMask=0077, then User=, NoNewPrivileges=yes, CapabilityBoundingSet=
ulimit -c 0
umask 077
exec chroot "$room" setpriv --reuid "$uid" --regid "$uid" --clear-groups \
  --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all "$@"
