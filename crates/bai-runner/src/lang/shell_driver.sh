# Runs cells in this shell, so that variables, functions and the working directory stay. The file of each cell is named on
# descriptor 3, its end is told on descriptor 4. `command` keeps the shell alive when a cell has a syntax error.
#
# An interrupt must end the cell, whatever functions and loops it is in, and not the shell. Bash can be made to return from
# each, and its `read` goes on until there is nothing to read; in other shells the expansion of a missing variable, which an idle shell has, unwinds everything.
bai_idle=1
if [ -n "${BASH_VERSION-}" ]; then
    exec 5<&0
    eval 'bai_return() { [ "${#BASH_SOURCE[@]}" -lt 2 ] || return 2; }'
    trap 'if [ -z "${bai_idle-}" ]; then bai_hit=1; exec </dev/null; trap bai_return DEBUG; set -T; shopt -s extdebug; fi' INT
else
    trap 'bai_hit=1; : "${bai_idle?the interrupt ends it}"' INT
fi
while IFS= read -r bai_cell <&3; do
    bai_hit=
    unset bai_idle
    command . "$bai_cell" 3<&- 4>&- 5<&-
    bai_code=$?
    bai_idle=1
    if [ -n "$bai_hit" ]; then
        bai_code=130
        if [ -n "${BASH_VERSION-}" ]; then
            trap - DEBUG
            set +T
            shopt -u extdebug
            exec <&5
        fi
    fi
    printf 'done %d 0\n' "$bai_code" >&4
done
