#!/usr/bin/env bash
# Trains one configuration on several machines, started on each of them; -h shows the flags.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage_of_machines() {
    cat <<EOF
Usage, on each machine: bash test/$(basename "$0") --py_config=FILE --nnodes=N
    --node_rank=R --master_addr=ADDR [--master_port=PORT]              fixed: you number the machines
    --rdzv_endpoint=HOST:PORT [--max_restarts=M] [--local_addr=ADDR]   elastic: machines may be lost and join again
  [--nproc_per_node=P] [--performance=0|1] [--own_model=0|1] [--work_dir=DIR] [-h]

Trains FILE in P processes on each of N machines, one a card. DIR is shared by the machines; one process writes there.
The summary is printed on the machine that --master_addr or HOST names, which must run until the training ends.
  --nnodes=N          machines; with --rdzv_endpoint also MIN:MAX: after a loss, training continues with MIN or more
  --nproc_per_node=P  processes on this machine (default 8), the same on each
  --node_rank=R       this machine's number, 0 to N-1; number 0 is the one that --master_addr names
  --master_addr=ADDR  its address
  --master_port=PORT  a free port there (default 29500)
  --rdzv_endpoint=    one machine's address and a free port there, the same on all machines
  --rdzv_id=NAME      distinguishes trainings with the same endpoint (default: the configuration's name)
  --max_restarts=M    how often a machine starts its processes again, from the last checkpoint (default 3)
  --local_addr=ADDR   address by which the others reach this machine (default: what its own name resolves to)
EOF
    usage_of_flags train_multi_node
}

# whole_number FLAG=VALUE MIN [MAX]
whole_number() {
    case "${1#*=}" in
        "" | *[!0-9]* | ??????????*) refuse "${1%%=*} is '${1#*=}'; expected a whole number" ;;
    esac
    [ "${1#*=}" -ge "$2" ] || refuse "${1%%=*} is '${1#*=}'; expected $2 or more"
    [ "${1#*=}" -le "${3:-999999999}" ] || refuse "${1%%=*} is '${1#*=}'; expected $3 or less"
}

nnodes="" node_rank="" master_addr="" master_port="" endpoint="" id="" restarts="" local_addr="" processes=8
name="" others=()
for flag in "$@"; do
    value=${flag#*=}
    case "$flag" in
        -h | --help) usage_of_machines; exit 0 ;;
        --nnodes=*:*)
            whole_number "--nnodes=${value%%:*}" 1
            whole_number "--nnodes=${value#*:}" "${value%%:*}"
            nnodes=$value ;;
        --nnodes=*) whole_number "$flag" 1; nnodes=$value ;;
        --nproc_per_node=*) whole_number "$flag" 1; processes=$value ;;
        --node_rank=*) whole_number "$flag" 0; node_rank=$value ;;
        --master_addr=?*) master_addr=$value ;;
        --master_port=*) whole_number "$flag" 1 65535; master_port=$value ;;
        --rdzv_endpoint=?*:*) whole_number "--rdzv_endpoint's port=${value##*:}" 1 65535; endpoint=$value ;;
        --rdzv_endpoint=*) refuse "--rdzv_endpoint is '$value'; expected HOST:PORT" ;;
        --rdzv_id=?*) id=$value ;;
        --max_restarts=*) whole_number "$flag" 0; restarts=$value ;;
        --local_addr=?*) local_addr=$value ;;
        --py_config=*) others+=("$flag"); name=$(basename "$value" .py) ;;
        *) others+=("$flag") ;;
    esac
done

[ -n "$nnodes" ] || refuse "--nnodes is missing"
if [ -n "$endpoint" ]; then
    [ -z "$node_rank$master_addr$master_port" ] ||
        refuse "with --rdzv_endpoint machines find their numbers; leave out --node_rank, --master_addr, --master_port"
    meeting=(--rdzv_backend=c10d "--rdzv_endpoint=$endpoint" "--rdzv_id=${id:-$name}" "--max_restarts=${restarts:-3}")
else
    [ -n "$node_rank" ] || refuse "--node_rank is missing (or give --rdzv_endpoint)"
    [ -n "$master_addr" ] || refuse "--master_addr is missing (or give --rdzv_endpoint)"
    [ -z "$restarts$id" ] || refuse "--max_restarts and --rdzv_id need --rdzv_endpoint"
    case "$nnodes" in *:*) refuse "--nnodes=$nnodes needs --rdzv_endpoint; else give one number" ;; esac
    [ "$node_rank" -lt "$nnodes" ] || refuse "--node_rank is '$node_rank'; expected less than --nnodes=$nnodes"
    meeting=("--node_rank=$node_rank" "--master_addr=$master_addr" "--master_port=${master_port:-29500}")
fi
[ -z "$local_addr" ] || meeting+=("--local_addr=$local_addr")

# is_here HOST: true if it is this machine
is_here() {
    "$python" -c '
import socket, sys
family, kind, _, _, address = socket.getaddrinfo(sys.argv[1].strip("[]"), 0, type=socket.SOCK_STREAM)[0]
try:
    socket.socket(family, kind).bind(address)
except OSError:
    sys.exit(1)' "$1" 2> /dev/null
}

prepare train_multi_node ${others[@]+"${others[@]}"}
[ -n "$endpoint" ] && is_here "${endpoint%:*}" && node_rank=0
on_term=USR1 on_int=USR1 # at other signals torch's agent gives the processes 30 s and ends with an error
[ "$node_rank" = 0 ] && rm -f "$work_dir/summary.json" # a file that is there afterwards was written by this run
run_to_end -m tpvformer.engine.agent "--nnodes=$nnodes" "--nproc_per_node=$processes" "${meeting[@]}" "${training[@]}"
[ "$node_rank" = 0 ] || exit 0
for _ in $(seq 10); do # another machine may have written it, and a shared file system may show it later
    [ -f "$work_dir/summary.json" ] && break
    sleep 1
done
publish
