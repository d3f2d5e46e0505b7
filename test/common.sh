# Functions of the launchers train_*.sh: read the flags, start the processes, print the summary. Sourced, not run. Used
# in the repository of tpvformer, beside its package, and in checkouts of the reference (from TPVFormer.patch).

unset CDPATH # with it cd prints its target, and may choose another folder of the same name

usage() {
    local processes="in one process, on a card or on the processor where there is none."
    [ "$1" -gt 1 ] && processes="in $1 processes, one a card; in fewer where fewer cards are visible, on the
processor where none is. The summary counts the processes that ran."
    cat <<EOF
Usage: bash test/$(basename "$0") --py_config=FILE [--performance=0|1] [--own_model=0|1]
    [--work_dir=DIR] [-h]

Trains FILE $processes
EOF
    usage_of_flags "train_$1p"
}

usage_of_flags() {
    cat <<EOF
  --py_config=FILE    configuration, ours or the reference's; relative to here or to the repository
  --performance=1     measure speed only: $PERFORMANCE_STEPS steps, no evaluation, no checkpoints; the learning rate
                      follows the whole training's schedule (default 0: train to the end and evaluate)
  --own_model=1       in a checkout of the reference: train its own model code, which is executed, in place of
                      tpvformer's (0: tpvformer's, without a remark on changed code; default: TPVFORMER_OWN_MODEL)
  --work_dir=DIR      folder of all output (default: output/$1/<config> in the repository);
                      an unfinished training in it is resumed
SIGTERM, SIGHUP, SIGUSR1 (Slurm: --signal=B:USR1@90) and Ctrl-C save the training and end it with exit code 0; the same
command resumes it. A second Ctrl-C ends it without waiting. Ctrl-Z suspends the training, and fg or bg continues it.
Environment: PYTHON chooses the interpreter (else .venv/bin/python of the repository, else python3).
  On an Ascend machine ASCEND_RT_VISIBLE_DEVICES chooses the cards; for one process ASCEND_DEVICE_ID does, too.
EOF
}

PERFORMANCE_STEPS=100

refuse() {
    echo "$(basename "$0"): $1 (-h shows the flags)" >&2
    exit 2
}

# Run a command and pass SIGTERM, SIGHUP, SIGUSR1, Ctrl-C and Ctrl-Z on to it; wait until it has ended, because training
# saves first.
pass_signals() {
    local child status heard=1
    set -m # in a process group of its own: in this one, a background process ignores Ctrl-C
    "$@" <&0 &
    child=$!
    set +m
    trap 'heard=1; kill -"${on_term:-TERM}" "$child"' TERM
    trap 'heard=1; kill -USR1 "$child"' USR1
    trap 'heard=1; kill -"${on_term:-HUP}" "$child"' HUP # without effect under nohup, which ignores it
    trap 'heard=1; kill -"${on_int:-INT}" "$child"; on_int=INT' INT
    trap 'heard=1; kill -TSTP -- "-$child"; kill -STOP $$; kill -CONT -- "-$child"' TSTP # continues when this shell does
    while [ "$heard" = 1 ]; do # a signal ends wait, not the child
        heard=0
        wait "$child"
        status=$?
    done
    trap - TERM HUP USR1 INT TSTP
    return "$status"
}

# launch CARDS FLAG...
launch() {
    local cards=$1 flag
    shift
    for flag in "$@"; do
        case "$flag" in -h | --help) usage "$cards"; exit 0 ;; esac
    done
    prepare "train_${cards}p" "$@"
    choose_card "$cards"
    [ "$cards" -gt 1 ] && training+=(--max-processes "$cards")
    rm -f "$work_dir/summary.json" # whatever is found there afterwards was written by this run
    run_to_end "${training[@]}"
    publish
}

# prepare NAME FLAG...: reads the flags that all launchers have, enters the repository and sets python, work_dir and
# training, the arguments of python that train. The default work dir lies in output/NAME.
prepare() {
    local name=$1 flag py_config="" performance=0 own_model="" root
    work_dir=""
    shift
    for flag in "$@"; do
        case "$flag" in
            --py_config=?*) py_config=${flag#*=} ;;
            --work_dir=?*) work_dir=${flag#*=} ;;
            --performance=0 | --performance=1) performance=${flag#*=} ;;
            --performance=*) refuse "--performance is '${flag#*=}'; expected 0 or 1" ;;
            --own_model=0 | --own_model=1) own_model=${flag#*=} ;;
            --own_model=*) refuse "--own_model is '${flag#*=}'; expected 0 or 1" ;;
            *) refuse "unknown or empty flag '$flag'" ;;
        esac
    done
    [ -n "$py_config" ] || refuse "--py_config is missing"

    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if [ -f "$py_config" ]; then
        py_config=$(cd "$(dirname "$py_config")" && pwd)/$(basename "$py_config")
    elif [ -f "$root/$py_config" ]; then
        py_config=$root/$py_config
    else
        refuse "--py_config=$py_config is no file, neither here nor in $root"
    fi
    work_dir=${work_dir:-$root/output/$name/$(basename "$py_config" .py)}
    mkdir -p "$work_dir" && work_dir=$(cd "$work_dir" && pwd) || refuse "--work_dir=$work_dir cannot be made"
    case "$work_dir" in "$root"/*) # in a checkout of the reference, git is not to list what is written
        [ -d "$root/tpvformer" ] || [ -n "$(ls -A "$work_dir")" ] || echo '*' > "$work_dir/.gitignore" ;;
    esac
    python=$(interpreter "$root") || exit 2

    cd "$root" || exit 2 # configurations name their data from here
    [ -d "$root/tpvformer" ] && export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    . "$root/test/env_npu.sh"
    training=(-m tpvformer train --py-config "$py_config" --work-dir "$work_dir")
    [ "$performance" = 1 ] && training+=(--max-steps "$PERFORMANCE_STEPS")
    case "$own_model" in 0) training+=(--no-own-model) ;; 1) training+=(--own-model) ;; esac
    unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
}

# run_to_end ARGUMENT...: run python with them; a failure ends the launcher with its exit code. Sets duration.
run_to_end() {
    local started=$SECONDS status
    pass_signals "$python" "$@"
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "$(basename "$0"): training ended with exit code $status; there are no results" >&2
        exit "$status"
    fi
    duration=$((SECONDS - started))
}

# Prints the summary block; its exit code is the launcher's.
publish() {
    if [ ! -f "$work_dir/summary.json" ]; then
        echo "$(basename "$0"): training was stopped and is saved; the same command resumes it" >&2
        exit 0
    fi
    "$python" -m tpvformer results --work-dir "$work_dir" --duration "$duration"
    exit $?
}

interpreter() {
    local found
    if [ -n "${PYTHON:-}" ]; then
        found=$(command -v "$PYTHON") || refuse "PYTHON=$PYTHON is no program"
    elif [ -x "$1/.venv/bin/python" ]; then
        found=$1/.venv/bin/python
    else
        found=$(command -v python3) || refuse "there is no python3; install Python or set PYTHON"
    fi
    case "$found" in /*) ;; *) found=$PWD/$found ;; esac
    "$found" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
        refuse "$found has no PyTorch; install requirements.txt, or set PYTHON to an interpreter that has it"
    [ -d "$1/tpvformer" ] || "$found" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tpvformer") is None)' ||
        refuse "$found has no package tpvformer; pip install PATH, the repository of TPVFormer.patch"
    echo "$found"
}

# With one process on an Ascend machine, use the card that the user named, if any.
choose_card() {
    if [ "$1" = 1 ] && [ -n "${ASCEND_DEVICE_ID:-}" ]; then
        export ASCEND_RT_VISIBLE_DEVICES=${ASCEND_RT_VISIBLE_DEVICES:-$ASCEND_DEVICE_ID}
    fi
}
