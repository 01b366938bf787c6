# Helpers shared by the scripts beside this file; sourced, not run.
# Progress goes to stderr, so that a script's stdout can be its result.

# shellcheck shell=bash disable=SC2034
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${IHGRPO_CACHE:-$REPO/.cache}
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps dockerd, ip and iptables; not in every root's PATH

# The daemon that scripts/ensure-docker starts, and all that belongs to it.
DOCKER_ROOT=${IHGRPO_DOCKER_ROOT:-/var/lib/ih-grpo/docker}
DOCKER_RUN=${IHGRPO_DOCKER_RUN:-/run/ih-grpo}
DOCKER_BRIDGE=${IHGRPO_DOCKER_BRIDGE:-ihgrpo0}
DOCKER_SUBNET=${IHGRPO_DOCKER_SUBNET:-172.31.254.1/24}

SANDBOX_IMAGE=${IHGRPO_SANDBOX_IMAGE:-ih-grpo-sandbox:latest}

step() { printf '==> %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }

# fail MESSAGE [LINE...]: says what is wrong, then how to mend it, and ends the script.
fail() {
  printf '\nerror: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }

# retry N COMMAND...: networks and package locks fail now and then.
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

# exclusive FILE: at most one script at a time holds FILE. The lock, descriptor 9, ends with the process,
# so a crash leaves none behind; anything started in the background must close it (9>&-).
exclusive() {
  local file=$1
  if ! mkdir -p "$(dirname "$file")" || ! exec 9>"$file"; then
    fail "$file can't be written" "If root made it in an earlier run: sudo chown -R $(id -un) $REPO"
  fi
  if ! flock --nonblock 9; then
    note "waiting for another run that holds $file"
    flock --timeout 1800 9 || fail "$file is still held after 30 minutes" "See who holds it: fuser -v $file"
  fi
}

# pip_setting NAME: this machine's setting of pip, the environment variable before the file; empty where there is none.
pip_setting() {
  local variable=PIP_${1//-/_}
  variable=${variable^^}
  echo "${!variable:-$("$REPO/.venv/bin/python" -m pip config get "global.$1" 2>/dev/null || true)}"
}

# Of a list of indexes, those that mean something inside a container: addresses, not local folders.
urls() { tr -s '[:space:]' '\n' | grep -E '^https?://' | paste -sd' ' || true; }

# ca_bundle: the file with the certificates that this machine trusts, where one is named; for builds behind a proxy.
ca_bundle() {
  local bundle=${PIP_CERT:-${REQUESTS_CA_BUNDLE:-${SSL_CERT_FILE:-}}}
  [ -z "$bundle" ] || [ -r "$bundle" ] || fail "the certificate file $bundle can't be read" \
    "It is named by PIP_CERT, REQUESTS_CA_BUNDLE or SSL_CERT_FILE: mend or unset that variable."
  echo "$bundle"
}

# apt_install PACKAGE...: Debian packages, as root; waits for a held lock, mends an interrupted dpkg.
# (apt waits for the lock on packages by itself, for that on its lists it does not: hence the many tries.)
apt_install() {
  note "installing Debian packages: $*"
  retry 10 apt_get update || fail "apt-get update failed" "Check the network and /etc/apt/sources.list, then run this again."
  retry 4 apt_get install --yes --no-install-recommends "$@" ||
    fail "apt-get could not install: $*" "Run it by hand to see why: apt-get install $*"
}

apt_get() {
  # Without systemd the packages' own start scripts must not start a daemon: run level 1 forbids it.
  local level=()
  [ -d /run/systemd/system ] || level=(RUNLEVEL=1)
  if ! env DEBIAN_FRONTEND=noninteractive "${level[@]}" \
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >/dev/null; then
    dpkg --configure -a --force-confold </dev/null >/dev/null || true
    return 1
  fi
}
