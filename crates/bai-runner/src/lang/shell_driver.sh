# Runs cells in this shell, so that variables, functions and the working directory stay. The file of each cell is named on
# descriptor 3, its end is told on descriptor 4. The trap keeps the shell alive when a cell is interrupted.
trap : INT
while IFS= read -r bai_cell <&3; do
    . "$bai_cell" 3<&- 4>&-
    printf '{"done":%d}\n' "$?" >&4
done
