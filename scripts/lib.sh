# Functions shared by the scripts in this folder. Source it, do not run it.
# Progress goes to stderr, so that a script can return its result on stdout.

# shellcheck shell=bash disable=SC2034
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${IHGRPO_CACHE:-$REPO/.cache}
PATH=$PATH:/usr/sbin:/sbin # Debian installs dockerd, ip and iptables there; not every root shell has it

# The daemon that scripts/ensure-docker starts.
DOCKER_ROOT=${IHGRPO_DOCKER_ROOT:-/var/lib/ih-grpo/docker}
DOCKER_RUN=${IHGRPO_DOCKER_RUN:-/run/ih-grpo}
DOCKER_BRIDGE=${IHGRPO_DOCKER_BRIDGE:-ihgrpo0}
DOCKER_SUBNET=${IHGRPO_DOCKER_SUBNET:-172.31.254.1/24}

SANDBOX_IMAGE=${IHGRPO_SANDBOX_IMAGE:-ih-grpo-sandbox:latest}

# known_sockets: print where Docker Engine, this project's daemon, Docker Desktop, rootless Docker and Podman listen, one
# path a line. The same list in the same order is in known_sockets in service/sandbox/docker/settings.py; a test compares
# them, since this script also runs before Python is set up.
known_sockets() {
  printf '%s\n' /var/run/docker.sock "$DOCKER_RUN/docker.sock" ~/.docker/run/docker.sock ~/.docker/desktop/docker.sock
  if [ -n "${XDG_RUNTIME_DIR:-}" ]; then
    printf '%s\n' "$XDG_RUNTIME_DIR/docker.sock" "$XDG_RUNTIME_DIR/podman/podman.sock"
  fi
  echo /run/podman/podman.sock
}

step() { printf '==> %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }

# fail MESSAGE [HINT...]: print the error and the hints, and exit with status 1.
fail() {
  printf '\nerror: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }

# retry N COMMAND...: try up to N times; networks and package locks fail occasionally.
retry() {
  local tries=$1 i
  shift
  for ((i = 1; i < tries; i++)); do
    if "$@"; then return 0; fi
    note "failed, trying again ($i of $((tries - 1)))"
    sleep $((i * 3))
  done
  "$@"
}

# exclusive FILE: hold a lock on FILE (descriptor 9) until the process ends, however it ends.
# Close the descriptor (9>&-) in processes that are left running in the background.
exclusive() {
  local file=$1
  if ! mkdir -p "$(dirname "$file")" || ! exec 9>"$file"; then
    fail "cannot write $file" "If an earlier run as root created it: sudo chown -R $(id -un) $REPO"
  fi
  if ! flock --nonblock 9; then
    note "waiting for another run that holds $file"
    flock --timeout 1800 9 || fail "$file is still locked after 30 minutes" "Find the process: fuser -v $file"
  fi
}

# apt_install PACKAGE...: install Debian packages as root. Waits for locks and repairs an interrupted dpkg.
# apt waits for the lock on packages by itself, but not for the lock on its lists, hence the many retries.
apt_install() {
  note "installing Debian packages: $*"
  retry 10 apt_get update || fail "apt-get update failed" "Check the network and /etc/apt/sources.list, then try again."
  retry 4 apt_get install --yes --no-install-recommends "$@" ||
    fail "apt-get could not install: $*" "Run it by hand to see the reason: apt-get install $*"
}

apt_get() {
  # Without systemd, prevent the packages from starting daemons: run level 1 forbids it.
  local level=()
  [ -d /run/systemd/system ] || level=(RUNLEVEL=1)
  if ! env DEBIAN_FRONTEND=noninteractive "${level[@]}" \
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >/dev/null; then
    dpkg --configure -a --force-confold </dev/null >/dev/null || true
    return 1
  fi
}
