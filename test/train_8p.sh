#!/usr/bin/env bash
# Trains one configuration in eight processes, one a card, or on the processor; -h shows the flags.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launch 8 "$@"
