#!/usr/bin/env bash
# One worker's side of a trial. The command outlives whoever asked for it; who comes back goes on
# watching it.
#
#   worker.sh start KEY ARGUMENT...   runs t5lite ARGUMENT..., once for each KEY, and follows it
#   worker.sh attach KEY              follows it; 75 where this worker knows nothing of KEY
#   worker.sh run ARGUMENT...         runs it in the place of this script
#   worker.sh stop                    asks what runs to save and end, and waits for that
#
# It ends with the command's exit status. setup.sh, beside it, is read first: it may mount, export
# and install, and leaves a t5lite on the PATH.
set -u
code=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
action=$1
boot=/proc/sys/kernel/random/boot_id
shift

ready() {
    export T5LITE_WHEEL
    T5LITE_WHEEL=$(echo "$code"/*.whl)
    # shellcheck disable=SC1091
    source "$code/setup.sh" || exit 1
    mkdir -p "$code/work" && cd "$code/work" || exit 1
}

follow() { # folder, first line
    local pid
    until [ -s "$1/boot" ]; do sleep 0.1; done
    pid=$(cat "$1/pid")
    # After a reboot the number may be another process's.
    if [ "$(cat "$1/boot")" = "$(cat "$boot")" ]; then
        tail --pid="$pid" -s 0.5 -n "$2" -F "$1/log" 2> /dev/null
    fi
    # Without a status it was killed together with what would have written it.
    exit "$(cat "$1/status" 2> /dev/null || echo 137)"
}

case $action in
    start)
        state=$code/attempts/$1
        shift
        mkdir -p "$code/attempts"
        if mkdir "$state" 2> /dev/null; then
            setsid bash "$code/worker.sh" child "$state" "$@" > "$state/log" 2>&1 < /dev/null &
        fi
        follow "$state" +1
        ;;
    attach)
        [ -d "$code/attempts/$1" ] || exit 75
        follow "$code/attempts/$1" 5
        ;;
    child) # of start
        state=$1
        shift
        trap 'echo $? > "$state/status"' EXIT
        echo $$ > "$state/pid"
        cp "$boot" "$state/boot"
        ready
        t5lite "$@"
        ;;
    run)
        ready
        exec t5lite "$@"
        ;;
    stop)
        for pid in $(cat "$code"/attempts/*/pid 2> /dev/null); do
            # The command is its only child; it saves and ends.
            pkill -TERM -P "$pid"
            tail --pid="$pid" -f /dev/null
        done
        ;;
    *)
        echo "worker.sh knows no $action" >&2
        exit 2
        ;;
esac
