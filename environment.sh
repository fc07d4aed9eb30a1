#!/bin/sh
# Makes the environment what its lock says, with uv. Every make target runs this first; when there
# is nothing to do it takes 0.02 s.
#
#   sh environment.sh             .venv, from requirements.txt
#   sh environment.sh checks      .venv-checks, from requirements-checks.txt
#   sh environment.sh lock        requirements*.txt anew from requirements*.in; UPGRADE=1: newest
#
# torch is a call of its own: its CPU build comes from pip's find-links or index, or from PyTorch's
# index, and has no hash in common. Everything else is checked against the hashes of the lock.
# A stamp, written last, says what .venv holds: what a killed installation left is made anew.
set -eu
cd "$(dirname "$0")"
. data/machine.env
torch_index=https://download.pytorch.org/whl/cpu
what=${1:-}
python=${PYTHON:-$PYTHON_VERSION}
log=build/install.log

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# -- does anything have to be done? --------------------------------------------------------------

if [ "$what" != lock ]; then
    venv=.venv${what:+-$what}
    lock=requirements${what:+-$what}.txt
    stamp=$venv/workshop-environment
    wanted="$PWD $python $(cat "$lock" pyproject.toml | cksum)"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0
fi

# -- can it be done on this machine? -------------------------------------------------------------

case "$(uname -s) $(uname -m)" in
"Linux x86_64" | "Linux aarch64") ;;
*) fail "This is $(uname -s) on $(uname -m): the local stack (vLLM's CPU build) needs Linux on" \
    "x86-64 or arm64. Use the Dockerfile (README, \"macOS and Windows\") or a virtual machine." ;;
esac
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)
[ "$(printf '%s\n' "$GLIBC" "${glibc:-0}" | sort -V | head -n 1)" = "$GLIBC" ] ||
    fail "This system has glibc ${glibc:-of no known version}: the packages need $GLIBC or newer" \
        "(Debian 11, Ubuntu 20.04)."
if [ "$(uname -m)" = x86_64 ] && grep -q '^flags' /proc/cpuinfo && ! grep -qw avx2 /proc/cpuinfo; then
    fail "This processor has no AVX2, which vLLM's CPU build needs: use another machine."
fi
free_gib=$(($(df -Pk . | awk 'END { print $4 }') / 1048576))
[ "$free_gib" -ge "$DISK_GIB" ] || [ "$what" = checks ] ||
    fail "$free_gib GiB of disk are free in $PWD and the environment needs $DISK_GIB while it is" \
        "installed: free some, then repeat."

mkdir -p build
exec 9>build/.environment.lock
if command -v flock >/dev/null && ! flock -n 9; then
    echo "Another command is installing; waiting for it."
    flock 9
    [ "$what" = lock ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0
fi
# From before anything is changed: wherever Ctrl-C comes, it is one line.
running=
trap 'kill "$running" 2>/dev/null || :; fail "Interrupted; repeat the command."' INT TERM HUP
: >"$log"
began=$(date +%s)

# -- helpers -------------------------------------------------------------------------------------

elapsed() {
    echo "$(($(date +%s) - began)) s"
}

# Runs a command into the log, with a line every ten seconds while it takes longer.
quietly() {
    echo "\$ $*" >>"$log"
    "$@" >>"$log" 2>&1 &
    running=$!
    ticks=0
    while kill -0 "$running" 2>/dev/null; do
        sleep 0.2
        ticks=$((ticks + 1))
        [ $((ticks % 50)) -ne 0 ] || echo "  $(elapsed): $doing"
    done
    wait "$running"
}

# Says in one line why the last command failed: $1 is what was being done.
failed() {
    if grep -qi 'no space left' "$log"; then
        why="no space left on the disk"
    elif grep -qiE 'dns error|failed to lookup|connection refused|timed out|unreachable|max retries' "$log"; then
        why="the package index cannot be reached (network, proxy, or pip's index-url)"
    else
        why=$(grep -E '^(error|ERROR)|cause:|caused by:|×|╰─▶' -i "$log" | tail -n 1 | cut -c 1-200)
    fi
    fail "$1 failed after $(elapsed): ${why:-no reason given}. Log: $log; repeat the command to try again."
}

# One of pip's settings, from its configuration files.
pip_setting() {
    # shellcheck disable=SC2086 # $pip is a command with its arguments
    $pip config list 2>/dev/null | sed -n "s/^\(global\|install\)\.$1='\(.*\)'$/\2/p" | tail -n 1 |
        sed 's/\\n/ /g' | xargs
}

# -- uv, and what pip is told --------------------------------------------------------------------

pip=".venv-uv/bin/python -m pip"
if uv=$(command -v uv); then
    pip="python3 -m pip"
elif ! .venv-uv/bin/uv --version >/dev/null 2>&1; then
    command -v python3 >/dev/null || fail "Neither uv nor python3 is here: install one of them."
    python3 -c 'import venv, ensurepip' 2>/dev/null ||
        fail "This python3 has no venv module: apt-get install python3-venv (or install uv), then repeat."
    doing="fetching uv"
    rm -rf .venv-uv
    quietly python3 -m venv .venv-uv || failed "Making .venv-uv"
    # shellcheck disable=SC2086 # $pip is a command with its arguments
    quietly $pip install --disable-pip-version-check --require-hashes --no-deps -r requirements-uv.txt ||
        failed "Installing uv"
fi
[ -n "$uv" ] || uv=.venv-uv/bin/uv

# uv reads nothing of pip's configuration.
links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
index=${PIP_INDEX_URL:-$(pip_setting index-url)}
more=${PIP_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}
[ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(echo "$links" | tr ' ' ',')}"
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
[ -z "$more" ] || export UV_INDEX="${UV_INDEX:-$more}"
export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}" # pip's way; hashes are checked

# -- the locks -----------------------------------------------------------------------------------

if [ "$what" = lock ]; then
    # pyproject.toml says what stays out of the workshop's own; --no-config: the others have all.
    # An index beside the usual one is asked for every package: only where torch is nowhere else.
    unset UV_INDEX # which may hold fewer files of a version, and so fewer hashes
    [ -n "$links" ] || more_options="--index $torch_index"
    for name in requirements requirements-checks requirements-uv; do
        case $name in
        requirements) set -- requirements.in requirements-dev.in --no-emit-package torch ;;
        *) set -- $name.in --no-config ;;
        esac
        doing="resolving $name"
        quietly "$uv" pip compile "$@" --output-file $name.txt --custom-compile-command "make lock" \
            --python-version "$PYTHON_VERSION" --no-strip-markers --generate-hashes \
            --python-platform "x86_64-manylinux_$(echo "$GLIBC" | tr . _)" --only-binary :all: \
            ${UPGRADE:+--upgrade} ${more_options:-} || failed "Resolving $name"
    done
    echo "requirements*.txt are resolved; the next make command installs them."
    exit 0
fi

# -- the environment -----------------------------------------------------------------------------

if [ -d "$venv" ] && [ ! -e "$stamp" ] && [ ! -e "$stamp.json" ] && [ -n "$(ls -A "$venv")" ]; then
    fail "$venv was not made by this project: move it away, then repeat."
fi
packages=$(grep -c '^[A-Za-z0-9].*==' "$lock")
echo "Installing $packages packages into $venv: 10 to 40 seconds, and what has to be downloaded."
mkdir -p "$venv"
: >"$stamp"
find "$venv" -mindepth 1 -maxdepth 1 ! -path "$stamp" -exec rm -rf {} +
doing="making $venv"
quietly "$uv" venv --allow-existing --python "$python" "$venv" || failed "Making $venv with Python $python"

install() {
    quietly "$uv" pip install ${what:+--no-config} --python "$venv" --no-deps ${PIP_NO_INDEX:+--no-index} "$@"
}

torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "${lock%.txt}.in")
if [ -n "$torch" ]; then
    doing="$torch"
    { [ -n "$links" ] && install "$torch" --no-index; } ||
        install "$torch" || install "$torch" --default-index "$torch_index" ||
        fail "No CPU build of torch can be had: neither pip's find-links and index nor" \
            "$torch_index gives $torch. Restore the network, or export PIP_FIND_LINKS=<a folder" \
            "with its wheel>, then repeat. Log: $log"
fi
doing="$packages packages"
install --require-hashes --only-binary :all: -r "$lock" || failed "Installing $lock"
if [ -z "$what" ]; then
    doing="workshop_lib"
    install --no-build-isolation --editable . || failed "Installing workshop_lib"
fi
echo "$wanted" >"$stamp"
echo "$venv is ready after $(elapsed)."
