#!/usr/bin/env bash
# Trains one configuration in one process; -h shows the flags.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch 1 "$@"
