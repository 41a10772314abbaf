#!/usr/bin/env bash
# One worker's part of a trial. The command outlives the connection that started it; a later one can
# attach to it.
#
#   worker.sh start KEY ARGUMENT...   runs t5lite ARGUMENT..., once for each KEY, and follows its log
#   worker.sh attach KEY              follows the log of KEY; exits with 75 if this worker has no KEY
#   worker.sh run ARGUMENT...         runs t5lite ARGUMENT... in this process
#   worker.sh stop                    asks the running command to save and end, and waits for it
#
# start and attach exit with the command's status if it is 0, 42, 69 or 70, with 101 for 1, 102 for 2
# and 103 for any other status: gcloud and ssh use none of these themselves. setup.sh, beside this file, is
# sourced first; it may mount, export and install, and puts t5lite on the PATH.
set -u
code=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
action=$1
boot=/proc/sys/kernel/random/boot_id
shift

ready() {
    export T5LITE_WHEEL
    T5LITE_WHEEL=$(echo "$code"/*.whl)
    # shellcheck disable=SC1091
    source "$code/setup.sh" || return 1
    mkdir -p "$code/work" && cd "$code/work"
}

is_running() { # folder of an attempt; after a reboot its pid may be that of another process
    [ ! -s "$1/status" ] && [ "$(cat "$1/boot" 2> /dev/null)" = "$(cat "$boot")" ] &&
        kill -0 "$(cat "$1/pid")" 2> /dev/null
}

follow() { # folder of an attempt, first line
    for _ in $(seq 100); do
        [ -s "$1/boot" ] && break
        sleep 0.1
    done
    if is_running "$1"; then
        tail --pid="$(cat "$1/pid")" -s 0.5 -n "$2" -F "$1/log" 2> /dev/null
    else
        tail -n "$2" "$1/log"
    fi
    # Without a status, the process that would have written it was killed too.
    local status
    status=$(cat "$1/status" 2> /dev/null)
    case ${status:-137} in
        0 | 42 | 69 | 70) exit "$status" ;;
        1 | 2) exit $((100 + status)) ;;
        *) exit 103 ;;
    esac
}

case $action in
    start)
        state=$code/attempts/$1
        shift
        mkdir -p "$code/attempts"
        if mkdir "$state" 2> /dev/null; then
            rm -f "$code/stopped"
            setsid bash "$code/worker.sh" child "$state" "$@" > "$state/log" 2>&1 < /dev/null &
        fi
        follow "$state" +1
        ;;
    attach)
        [ -d "$code/attempts/$1" ] || exit 75
        follow "$code/attempts/$1" 5
        ;;
    child) # started by start
        state=$1
        shift
        trap 's=$?; echo $s > "$state/status.part" && mv "$state/status.part" "$state/status"' EXIT
        echo $$ > "$state/pid"
        cp "$boot" "$state/boot"
        ready
        was_ready=$?
        [ ! -e "$code/stopped" ] || exit 42
        [ $was_ready = 0 ] || exit 1
        t5lite "$@"
        ;;
    run)
        ready || exit 1
        exec t5lite "$@"
        ;;
    stop)
        touch "$code/stopped"
        for state in "$code"/attempts/*; do
            if is_running "$state"; then
                # Its only child is the command, which saves and ends.
                pkill -TERM -P "$(cat "$state/pid")"
                tail --pid="$(cat "$state/pid")" -f /dev/null
            fi
        done
        ;;
    *)
        echo "worker.sh: unknown action $action" >&2
        exit 2
        ;;
esac
