#!/usr/bin/env bash
# One worker's side of a trial. The command outlives whoever asked for it; who comes back goes on
# watching it.
#
#   worker.sh start KEY ARGUMENT...   runs t5lite ARGUMENT..., once for each KEY, and follows it
#   worker.sh attach KEY              follows it; 75 where this worker knows nothing of KEY
#   worker.sh run ARGUMENT...         runs it in the place of this script
#   worker.sh stop                    asks what runs to save and end, and waits for that
#
# start and attach end with the command's exit status where that is 0, 42 or 69, with 101 for 1, 102
# for 2 and 103 for all others: what gcloud and ssh end with by themselves is none of these. setup.sh,
# beside this file, is read first: it may mount, export and install, and leaves a t5lite on the PATH.
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

goes_on() { # folder of an attempt; after a reboot its number may be another process's
    [ ! -s "$1/status" ] && [ "$(cat "$1/boot" 2> /dev/null)" = "$(cat "$boot")" ] &&
        kill -0 "$(cat "$1/pid")" 2> /dev/null
}

follow() { # folder of an attempt, first line
    for _ in $(seq 100); do
        [ -s "$1/boot" ] && break
        sleep 0.1
    done
    if goes_on "$1"; then
        tail --pid="$(cat "$1/pid")" -s 0.5 -n "$2" -F "$1/log" 2> /dev/null
    else
        tail -n "$2" "$1/log"
    fi
    # Without a status it was killed together with what would have written it.
    local status
    status=$(cat "$1/status" 2> /dev/null)
    case ${status:-137} in
        0 | 42 | 69) exit "$status" ;;
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
    child) # of start
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
            if goes_on "$state"; then
                # The command is its only child; it saves and ends.
                pkill -TERM -P "$(cat "$state/pid")"
                tail --pid="$(cat "$state/pid")" -f /dev/null
            fi
        done
        ;;
    *)
        echo "worker.sh knows no $action" >&2
        exit 2
        ;;
esac
