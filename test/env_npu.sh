# Environment of an Ascend machine, to be sourced. Does nothing where CANN is not installed, and does not override
# variables that are set.

find_cann() {
    # where CANN's installer says it is, then its two usual places; nnae is the package without compilers
    local folder script info=${ASCEND_INSTALL_INFO:-/etc/Ascend/ascend_cann_install.info} said=
    [ -r "$info" ] && said=$(sed -n 's/^[[:space:]]*Install_Path[[:space:]]*=[[:space:]]*//p' "$info" | head -n 1)
    for folder in ${said:+"${said%/}"} /usr/local/Ascend "$HOME/Ascend"; do
        for script in "$folder"/ascend-toolkit/set_env.sh "$folder"/cann/set_env.sh "$folder"/nnae/set_env.sh; do
            [ -f "$script" ] && echo "$script" && return 0
        done
    done
    return 1
}

only_address() { # the machine's address if it has exactly one of IPv4; with several, which one reaches the others?
    local address found=
    for address in $(hostname -I 2> /dev/null); do
        case "$address" in *:*) continue ;; esac
        [ -z "$found" ] || return 1
        found=$address
    done
    [ -n "$found" ] && echo "$found"
}

if [ -z "${ASCEND_HOME_PATH:-}" ] && [ "${etp_running_flag:-}" != true ]; then
    if cann_script=$(find_cann); then
        cann_strict=$- # CANN's script reads variables that may not be set
        set +u
        . "$cann_script"
        case "$cann_strict" in *u*) set -u ;; esac
    fi
    unset cann_script cann_strict
fi

if [ -n "${ASCEND_HOME_PATH:-}" ]; then
    # print only errors of the device on the terminal
    export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0}
    export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3}
    export ASCEND_GLOBAL_EVENT_ENABLE=${ASCEND_GLOBAL_EVENT_ENABLE:-0}
    # launch work from a second thread, fuse copies of views, pin threads to cores near the card
    export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-2}
    export COMBINED_ENABLE=${COMBINED_ENABLE:-1}
    export CPU_AFFINITY_CONF=${CPU_AFFINITY_CONF:-1}
    # the first collective operation may wait for compilation in another process
    export HCCL_WHITELIST_DISABLE=${HCCL_WHITELIST_DISABLE:-1}
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1200}
    if [ -z "${HCCL_IF_IP:-}${HCCL_SOCKET_IFNAME:-}" ] && hccl_address=$(only_address); then
        export HCCL_IF_IP=$hccl_address
    fi
    unset hccl_address
fi
unset -f find_cann only_address
