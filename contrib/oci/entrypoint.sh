#!/bin/sh
# The program of the image. It takes command lines of pyderp (`relay …`, `key new`, or flags of
# `pyderp relay` alone) and of derper (`derper …`, or its flags alone, in Go's spelling).
#
# Started as root, it changes the owner of the relay's files to the user pyderp and becomes that user,
# with no other right than to open ports below 1024. Command lines of derper keep running as root: they
# name files of a volume that belongs to root. Started as another user, it changes nothing.
set -eu

state=${STATE_DIRECTORY:-/var/lib/pyderp}
derper_key=${DERPER_KEY:-/var/lib/derper/derper.key}

# Flags of pyderp have two dashes, or one letter and its value in the next word.
in_go_spelling() {
  for word; do
    case $word in -[a-z][a-z]* | -[a-z]=*) return 0 ;; esac
  done
  return 1
}

names_a_key() {
  [ -z "${PYDERP_KEY_FILE-}" ] || return 0
  for word; do
    case $word in
      -c* | --config | --config=* | --key-file | --key-file=* | --dev) return 0 ;;
    esac
  done
  return 1
}

case ${1-} in
  derper | */derper)
    shift
    set -- derper "$@"
    ;;
  pyderp | */pyderp) shift ;;
  '' | -*)
    if in_go_spelling "$@"; then set -- derper "$@"; else set -- relay "$@"; fi
    ;;
esac

if [ "$(id -u)" != 0 ] || [ "${1-}" = derper ]; then
  exec pyderp "$@"
fi

# A folder of the host, and files from a backup, belong to root at first. If the owner cannot be
# changed (a read-only mount, no capabilities), the relay reports which file it cannot use.
mkdir -p "$state"
find "$state" -xdev -user 0 -exec chown -h pyderp:pyderp {} + || :
if [ "${1-}" = relay ] && [ -f "$derper_key" ] && [ ! -e "$state/relay.key" ] && ! names_a_key "$@"; then
  # Copied under another name, so that the key file is complete or missing; never readable by others.
  (umask 077 && cp "$derper_key" "$state/relay.key.new")
  chown pyderp:pyderp "$state/relay.key.new" || :
  mv "$state/relay.key.new" "$state/relay.key"
  echo "the relay takes over derper's key: $state/relay.key is a copy of $derper_key" >&2
fi

export HOME="$state"
become="setpriv --reuid=pyderp --regid=pyderp --init-groups --no-new-privs"
only=-all,+net_bind_service
# shellcheck disable=SC2086 # words of a command
if $become --bounding-set=$only --inh-caps=$only --ambient-caps=$only true 2>/dev/null; then
  exec $become --bounding-set=$only --inh-caps=$only --ambient-caps=$only pyderp "$@"
elif $become true 2>/dev/null; then
  exec $become pyderp "$@"
fi
echo "this container may not change its user (cap-drop?), so pyderp runs as its root; --user=3478 is better" >&2
exec pyderp "$@"
